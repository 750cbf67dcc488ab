"""How the options of a verb are shown: grouped, with values and defaults in words, as wide as the terminal."""

from __future__ import annotations

import shutil
from argparse import SUPPRESS, Action
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

__all__ = ["Formatter", "descriptions", "expected", "kinds_of", "placeholder", "retitle"]


class Formatter(DefaultHelpFormatter):
    """Argparse's layout without the types of the code behind."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, 120) - 2
        super().__init__(prog, max_help_position=30, width=width)  # type: ignore[no-untyped-call]

    def _get_help_string(self, action: Action) -> str:
        text = (action.help or "").replace("``out``", "--out").replace("``", "")
        shown = _shown(action.default)
        return f"{text} [{shown}]" if shown and action.nargs != 0 and not action.required else text

    def _format_action_invocation(self, action: Action) -> str:
        names = ", ".join(name for name in action.option_strings if not name.endswith("+"))  # --list+ appends
        if action.nargs == 0 or action.metavar == "":
            return names
        if not names:
            return str(action.metavar or action.dest.upper())
        return f"{names} {placeholder(action)}"


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if default is None or default == SUPPRESS or isinstance(default, Mapping | Namespace):
        return ""
    return ",".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


def placeholder(action: Action) -> str:
    """Return what stands for an option's value: the choices, N for a whole number, X for another, or a word."""
    choices, kinds = kinds_of(action)
    if action.metavar is not None and action.metavar != "[ITEM,...]":
        return str(action.metavar)
    if choices:
        return "{" + ",".join(map(str, choices)) + "}"
    words = {int: "N", float: "X", list: "A,B,...", tuple: "A,B,...", dict: "'{A: B}'"}
    return next((words[kind] for kind in kinds if kind in words), action.dest.rpartition(".")[2].upper())


def kinds_of(action: Action) -> tuple[list[Any], list[type]]:
    """Return an option's choices and the other types its value may have."""
    choices: list[Any] = []
    kinds: list[type] = []
    todo = [getattr(action, "_typehint", None) or action.type]
    while todo:
        kind = todo.pop(0)
        if get_origin(kind) is Literal:
            choices += get_args(kind)
        elif get_origin(kind) is Union or type(kind).__name__ == "UnionType":
            todo += get_args(kind)
        elif isinstance(plain := get_origin(kind) or kind, type) and plain is not type(None):
            kinds.append(plain)
    return choices, kinds


def expected(action: Action) -> str:
    """Say in words what values an option takes."""
    choices, kinds = kinds_of(action)
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        list: "a list like A,B",
        tuple: "a list like A,B",
        dict: "pairs like '{A: B, C: D}'",
    }
    said = [f"one of {', '.join(map(str, choices))}"] if choices else []
    return " or ".join([*said, *(words.get(kind, kind.__name__) for kind in kinds)])


def descriptions(function: Any) -> dict[str, str]:
    """Return what a docstring says about each argument, in one line each."""
    from docstring_parser import parse

    found = parse(function.__doc__ or "").params
    return {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in found}


def retitle(parser: ArgumentParser, name: str, title: str, text: str, metavar: str = "NAME") -> None:
    """Title the group of the options ``--NAME.*`` and say what ``--NAME VALUE`` means."""
    group, action = next((g, a) for g in parser._action_groups for a in g._group_actions if a.dest == name)
    group.title, action.metavar, action.help = title, metavar, text
