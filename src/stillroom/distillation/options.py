"""A method's hyperparameters as plain data, read from its constructor."""

from __future__ import annotations

import inspect
from typing import Any

from stillroom.distillation.methods import AnyMethod

__all__ = ["method_defaults", "method_options", "short_training"]


def method_defaults(method: type[AnyMethod]) -> dict[str, Any]:
    """Return the constructor's defaults by name."""
    return {parameter.name: parameter.default for parameter in _parameters(method)}


def method_options(method: AnyMethod) -> dict[str, Any]:
    """Return the values a method was built with, by the constructor's names (every method keeps them as attributes)."""
    return {parameter.name: getattr(method, parameter.name) for parameter in _parameters(type(method))}


def short_training(method: AnyMethod, epochs: int) -> list[str]:
    """Say, in one sentence, when a method's warm-up outlasts the training; papers mean 20 of 240 epochs."""
    if method.warmup_epochs <= epochs:
        return []
    option = "warmup_epochs" if "warmup_epochs" in method_defaults(type(method)) else "rampup"
    return [
        f"The warm-up of {method.card.name} lasts {method.warmup_epochs} epochs and the training {epochs}: its term "
        f"never reaches its full weight; set --method.{option}."
    ]


def _parameters(method: type[AnyMethod]) -> list[inspect.Parameter]:
    # A method without hyperparameters inherits a constructor of ``*args, **kwargs``.
    return [p for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
