"""The options ``distill`` and ``bench`` share: data, recipe, networks, devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from stillroom.cli._parser import describe_group, expand, peek, plain
from stillroom.data.options import DataOptions
from stillroom.distillation.distill import as_recipe
from stillroom.training.recipe import PRESETS, Recipe

__all__ = ["add_help", "add_job", "job_arguments", "prepare", "yes_no"]

SHORT = {"--data": "--data.name", "--recipe": "--recipe.preset", "--method": "--method.name"}

LISTS = ("--methods", "--seeds", "--student_taps", "--teacher_taps", "--recipe.milestones")


def prepare(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Expand the short forms and take out what must be known before parsing: the recipe's preset.

    Returns:
        The arguments left to parse, and the early choices: ``preset`` and ``student``.
    """
    arguments = expand(argv, SHORT, LISTS)
    early = {
        "preset": peek(arguments, "--recipe.preset") or "quick",
        "student": peek(arguments, "--student") or "resnet8",
    }
    rest: list[str] = []
    while arguments:
        word = arguments.pop(0)
        if word == "--recipe.preset":
            arguments.pop(0)
        elif not word.startswith("--recipe.preset="):
            rest.append(word)
    return rest, early


def add_job(parser: ArgumentParser, parameters: Mapping[str, str], early: Mapping[str, str]) -> None:
    """Add the shared options; ``parameters`` are the descriptions of the library function's arguments."""
    parser.add_argument("--student", type=str, default="resnet8", help=parameters["student"])
    parser.add_argument("--teacher", type=str, default="resnet20", help=parameters["teacher"])
    parser.add_class_arguments(DataOptions, "data")
    describe_group(parser, "data", "short for --data.name NAME; or a YAML file with the options of the data")
    recipe = as_recipe(early["preset"], early["student"])
    parser.add_class_arguments(Recipe, "recipe")
    parser.set_defaults({f"recipe.{name}": getattr(recipe, name) for name in Recipe.__dataclass_fields__})
    describe_group(parser, "recipe", f"a preset that the options below refine: {', '.join(PRESETS)} (default: quick)")


def yes_no(parser: ArgumentParser, name: str, default: bool, text: str) -> None:
    """Add ``--name`` and ``--no_name``."""
    parser.add_argument(f"--{name}", action=ActionYesNo, default=default, help=text)


def add_help(parser: ArgumentParser, name: str, kind: Any, default: Any, parameters: Mapping[str, str]) -> None:
    """Add one option with the description of the library function's argument."""
    parser.add_argument(f"--{name}", type=kind, default=default, help=parameters[name])


def job_arguments(options: Namespace) -> dict[str, Any]:
    """Return the shared options as the library takes them."""
    return {
        "student": options.student,
        "teacher": options.teacher,
        "data": DataOptions(**plain(options.data)),
        "recipe": Recipe(**{**plain(options.recipe), "milestones": tuple(options.recipe.milestones)}),
    }
