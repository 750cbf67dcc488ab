"""What a user should know of a method's options before it is trained."""

from __future__ import annotations

from stillroom.distillation.methods import AnyMethod
from stillroom.hyperparameters import method_defaults

__all__ = ["short_training"]


def short_training(method: AnyMethod, epochs: int) -> list[str]:
    """Say, in one sentence, when a method's warm-up outlasts the training; papers mean 20 of 240 epochs."""
    if method.warmup_epochs <= epochs:
        return []
    option = "warmup_epochs" if "warmup_epochs" in method_defaults(type(method)) else "rampup"
    return [
        f"The warm-up of {method.card.name} lasts {method.warmup_epochs} epochs and the training {epochs}: its term "
        f"never reaches its full weight; set --method.{option}."
    ]
