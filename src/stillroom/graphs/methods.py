"""The one table of methods for graph neural networks: name -> where its class lives, resolved on use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stillroom.errors import unknown_name

if TYPE_CHECKING:
    from stillroom.graphs.online._method import Method

__all__ = ["METHODS", "method_class"]

METHODS: dict[str, str] = {
    "independent": "independent:Independent",
    "dml": "dml:DML",
    "kdcl": "kdcl:KDCL",
    "one": "one:ONE",
    "lsp": "lsp:LSP",
    "codistill": "codistill:Codistill",
    "alignahead": "alignahead:Alignahead",
    "alignahead_pp": "alignahead_pp:AlignaheadPP",
    "oad": "oad:OAD",
}


def method_class(name: str) -> type[Method]:
    """Return the class behind a method's short name.

    Raises:
        InputError: The name is not in the table; the nearest known name is suggested.

    Example:
        >>> method_class("oad").card.papers[0].year
        2024
    """
    if name not in METHODS:
        raise unknown_name("method for graphs", name, METHODS)
    module, attribute = METHODS[name].split(":")
    found: type[Method] = getattr(import_module(f"stillroom.graphs.online.{module}"), attribute)
    return found
