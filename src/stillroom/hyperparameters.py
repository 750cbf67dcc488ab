"""A method's hyperparameters as plain data, read from its constructor."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["method_defaults", "method_options"]


def method_defaults(method: type[Any]) -> dict[str, Any]:
    """Return the defaults of a class's keyword-only constructor by name."""
    return {parameter.name: parameter.default for parameter in _parameters(method)}


def method_options(method: object) -> dict[str, Any]:
    """Return the values a method was built with, by the constructor's names (every method keeps them as attributes)."""
    return {parameter.name: getattr(method, parameter.name) for parameter in _parameters(type(method))}


def _parameters(method: type[Any]) -> list[inspect.Parameter]:
    # A method without hyperparameters inherits a constructor of ``*args, **kwargs``.
    return [p for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
