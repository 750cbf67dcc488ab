"""The options ``distill`` and ``bench`` share: networks, data, recipe, where to train, what to print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from stillroom.cli._help import retitle
from stillroom.cli._parser import expand, peek, plain, read_configs, words
from stillroom.data.options import DataOptions
from stillroom.distillation.distill import as_recipe
from stillroom.distillation.networks import Normalisation
from stillroom.training.fabric import Device, Precision
from stillroom.training.recipe import PRESETS, Recipe
from stillroom.training.teacher import Precision as TeacherPrecision

__all__ = ["Group", "add_data_and_recipe", "add_networks", "add_output", "add_training", "job_arguments", "prepare"]

SHORT = {"--data": "--data.name", "--recipe": "--recipe.preset", "--method": "--method.name"}

LISTS = ("--methods", "--seeds", "--student_taps", "--teacher_taps", "--recipe.milestones")

COMMON = (
    *("temperature", "teacher_epochs", "teacher_normalisation", "teacher_precision", "teacher_cache", "weights"),
    *("out", "device", "precision", "compile", "eval_every", "resume", "overwrite"),
)


class Group:
    """A titled group of options, described by the docstring of the library function that takes them."""

    def __init__(self, parser: ArgumentParser, title: str, said: Mapping[str, str]) -> None:
        self.group = parser.add_argument_group(title)
        self.said = said

    def add(self, name: str, kind: Any, default: Any, metavar: str | None = None) -> None:
        """Add ``--name VALUE``."""
        action = self.group.add_argument(f"--{name}", type=kind, default=default, help=self.said[name])
        action.metavar = metavar or action.metavar

    def yes_no(self, name: str, default: bool) -> None:
        """Add ``--name`` and ``--no_name``."""
        text = f"{self.said[name]} [{'yes' if default else 'no'}]"
        self.group.add_argument(f"--{name}", action=ActionYesNo, default=default, help=text)

    def flag(self, name: str, text: str = "") -> None:
        """Add ``--name``."""
        self.group.add_argument(f"--{name}", action="store_true", help=text or self.said[name])


def prepare(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Expand short forms, configuration files and the recipe's preset; find out what shapes the other options.

    A preset stands behind the configuration file it follows and before all other options, so that it overrides the
    one and is refined by the others.

    Returns:
        The arguments left to parse, and the early choices: ``preset``, ``student`` and ``method``.
    """
    arguments = read_configs(expand(argv, SHORT, LISTS), SHORT)
    early = {
        "preset": peek(arguments, "--recipe.preset") or "quick",
        "student": peek(arguments, "--student") or "resnet8",
        "method": peek(arguments, "--method.name") or "kd",
    }
    rest: list[str] = []
    behind = 0  # the last configuration file
    for option, value in words(arguments):
        if option == "--recipe.preset" and value is not None:
            rest[behind:behind] = ["--recipe", json.dumps(_preset(value, early["student"]))]
        elif option == "--config" and value is not None:
            config = json.loads(value)
            recipe = config.get("recipe")
            if isinstance(recipe, dict) and "preset" in recipe:
                config["recipe"] = _preset(str(recipe.pop("preset")), early["student"]) | recipe
            rest += [option, json.dumps(config)]
            behind = len(rest)
        else:
            rest += [option] if value is None else [option, value]
    return rest, early


def _preset(name: str, student: str) -> dict[str, Any]:
    return asdict(as_recipe(name, student))


def add_networks(group: Group) -> None:
    """Add student and teacher and how the teacher is computed."""
    group.add("student", str, "resnet8", "MODEL")
    group.add("teacher", str, "resnet20", "MODEL")
    group.add("teacher_epochs", int | None, None)
    group.add("teacher_normalisation", Normalisation, "data")
    group.add("teacher_precision", TeacherPrecision, "32")
    group.add("teacher_cache", str | None, None, "DIR")


def add_data_and_recipe(parser: ArgumentParser, early: Mapping[str, str]) -> None:
    """Add the groups of the data and of the recipe, whose defaults are those of the chosen preset."""
    parser.add_class_arguments(DataOptions, "data")
    retitle(parser, "data", "data", "NAME", "short for --data.name NAME; or a YAML file with the options of the data")
    recipe = as_recipe(early["preset"], early["student"])
    parser.add_class_arguments(Recipe, "recipe")
    parser.set_defaults({f"recipe.{name}": getattr(recipe, name) for name in Recipe.__dataclass_fields__})
    text = f"a preset, which the options below refine: {', '.join(PRESETS)} [quick]"
    retitle(parser, "recipe", "recipe", "NAME", text)


def add_training(group: Group, eval_every: int | None) -> None:
    """Add where and how to train."""
    group.add("device", Device, "auto")
    group.add("precision", Precision, "32")
    group.yes_no("compile", False)
    group.add("eval_every", int if eval_every else int | None, eval_every)


def add_output(group: Group, out: str) -> None:
    """Add the run directory and what is printed."""
    group.add("out", str, out, "DIR")
    group.flag("resume")
    group.flag("overwrite")
    group.flag("json", "print the result as one JSON object on standard output, and all else on standard error")
    group.flag("quiet", "show no progress")


def job_arguments(options: Namespace) -> dict[str, Any]:
    """Return the shared options as the library takes them."""
    return {
        "student": options.student,
        "teacher": options.teacher,
        "data": DataOptions(**plain(options.data)),
        "recipe": Recipe(**{**plain(options.recipe), "milestones": tuple(options.recipe.milestones)}),
        "show_progress": not options.quiet,
        **{name: getattr(options, name) for name in COMMON},
    }
