"""A method's hyperparameters as plain data, read from its constructor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from stillroom.errors import InputError, unknown_name

__all__ = ["make_method", "method_defaults", "method_options"]

MethodT = TypeVar("MethodT")


def make_method(kind: type[MethodT], name: str, options: Mapping[str, Any]) -> MethodT:
    """Return a method made with those of its hyperparameters that are given.

    Args:
        kind: The method's class.
        name: What messages call it.
        options: Hyperparameter -> value.

    Raises:
        InputError: There is no such hyperparameter, or it cannot have that value.
    """
    for option in options:
        if option not in method_defaults(kind):
            raise unknown_name(f"option of {name}", option, method_defaults(kind))
    try:
        return kind(**options)
    except TypeError as error:
        raise InputError(f"method_options of {name}: {error}") from None


def method_defaults(method: type[Any]) -> dict[str, Any]:
    """Return the defaults of a class's keyword-only constructor by name."""
    return {parameter.name: parameter.default for parameter in _parameters(method)}


def method_options(method: object) -> dict[str, Any]:
    """Return the values a method was built with, by the constructor's names (every method keeps them as attributes)."""
    return {parameter.name: getattr(method, parameter.name) for parameter in _parameters(type(method))}


def _parameters(method: type[Any]) -> list[inspect.Parameter]:
    # A method without hyperparameters inherits a constructor of ``*args, **kwargs``.
    return [p for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
