"""What a user asks of a distillation: method, teachers, recipe and weights, by name or as objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from stillroom.distillation.course import check_teachers
from stillroom.distillation.methods import AnyMethod, Family, family_of, method_class
from stillroom.distillation.offline._method import Convention, Method, Weights
from stillroom.errors import InputError, unknown_name
from stillroom.training.recipe import PRESETS, Recipe, default_lr

__all__ = ["NOT_FOR", "TEACHERS", "Spec", "as_method", "as_recipe", "as_teachers", "as_weights", "name_of"]

# What methods learn from unless told otherwise; peers have no teacher, translation trains networks of its own.
TEACHERS: dict[str, tuple[str, ...]] = {
    "offline": ("resnet20",),
    "multi_teacher": ("resnet20", "resnet14"),
    "data_free": ("resnet20",),
    "online": (),
    "translation": (),
}

# A network by name, or in Python a module.
Spec = str | nn.Module


# Options that mean nothing to a family; its configuration leaves them out.
NOT_FOR: dict[str, tuple[str, ...]] = {
    "offline": ("peers", "branch"),
    "multi_teacher": ("peers", "branch", "weights", "temperature"),
    "data_free": ("peers", "branch", "weights", "temperature", "teacher_cache"),
    "online": (
        *("weights", "temperature", "teacher", "teacher_epochs", "teacher_normalisation", "teacher_precision"),
        *("teacher_cache", "label_map", "teacher_taps"),
    ),
}


def as_teachers(teacher: Spec | Sequence[Spec] | None, method: AnyMethod) -> list[Spec]:
    """Return the teachers' specifications, the family's usual ones when none are named.

    Raises:
        InputError: The method learns from more or fewer teachers.
    """
    if teacher is None:
        return list(TEACHERS[_trained_here(method)])
    teachers = [teacher] if isinstance(teacher, str | nn.Module) else list(teacher)
    check_teachers(method, len(teachers))
    return teachers


def as_method(method: str | AnyMethod) -> AnyMethod:
    """Return the method itself, or the one of that name with the paper's hyperparameters.

    Raises:
        InputError: There is none, or it translates weights instead of training a student.
    """
    chosen: AnyMethod = method_class(method)() if isinstance(method, str) else method
    _trained_here(chosen)
    return chosen


def _trained_here(method: AnyMethod) -> Family:
    family = family_of(method.card.name)
    if family == "translation":
        raise InputError(f"{method.card.name} trains no student; call stillroom.translate, or stillroom distill")
    return family


def as_recipe(recipe: str | Recipe, student: str | nn.Module) -> Recipe:
    """Return the recipe itself, or the preset of that name with the literature's learning rate for the student."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in PRESETS:
        raise unknown_name("recipe", recipe, PRESETS)
    preset, usual = PRESETS[recipe], default_lr(name_of(student))
    # 0.01 for students that need it; a preset's own rate else.
    return replace(preset, lr=usual) if preset.optimizer == "sgd" and usual < Recipe().lr else preset


def as_weights(weights: Convention | Weights | Mapping[str, float], method: Method) -> Weights:
    """Return the weights themselves (also as a mapping ce, kd, method), or the method's under that convention."""
    if isinstance(weights, Weights):
        return weights
    if isinstance(weights, Mapping):
        if set(weights) != {"ce", "kd", "method"}:
            raise InputError(f"weights need the keys ce, kd and method, got {', '.join(sorted(weights)) or 'none'}")
        return Weights(**{name: float(value) for name, value in weights.items()})
    if weights not in method.presets:
        raise unknown_name("weights", weights, method.presets)
    return method.presets[weights]


def name_of(spec: str | nn.Module) -> str:
    """Return a specification in a word."""
    return spec if isinstance(spec, str) else type(spec).__qualname__
