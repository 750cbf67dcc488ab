"""The options ``distill`` and ``bench`` share: networks, data, recipe, where to train, what to print."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from stillroom.cli._help import descriptions, retitle
from stillroom.cli._parser import expand, peek, plain, read_configs, words
from stillroom.data.options import DataOptions
from stillroom.distillation.choices import as_recipe
from stillroom.distillation.networks import Normalisation
from stillroom.training.fabric import Device, Precision
from stillroom.training.recipe import PRESETS, Recipe
from stillroom.training.teacher import Precision as TeacherPrecision

__all__ = ["Group", "add_data_and_recipe", "add_output", "add_teachers", "add_training", "job_arguments", "prepare"]

SHORT = {"--data": "--data.name", "--recipe": "--recipe.preset", "--method": "--method.name"}

LISTS = ("--methods", "--seeds", "--student_taps", "--teacher_taps", "--recipe.milestones")

COMMON = (
    *("teacher", "teacher_epochs", "teacher_normalisation", "teacher_precision", "teacher_cache", "weights"),
    *("temperature", "peers", "branch", "out", "device", "precision", "compile", "eval_every", "resume", "overwrite"),
)


class Group:
    """A titled group of options; defaults and descriptions are those of the library function that takes them."""

    def __init__(self, parser: ArgumentParser, title: str, function: Callable[..., Any]) -> None:
        self.group = parser.add_argument_group(title)
        self.parameters = inspect.signature(function).parameters
        self.said = descriptions(function)

    def _default(self, name: str) -> Any:
        default = self.parameters[name].default
        return list(default) if isinstance(default, tuple) else default

    def add(self, name: str, kind: Any, metavar: str | None = None, **default: Any) -> None:
        """Add ``--name VALUE``, with the function's default unless another is given."""
        value = default.get("default", self._default(name))
        action = self.group.add_argument(f"--{name}", type=kind, default=value, help=self.said[name])
        action.metavar = metavar or action.metavar

    def yes_no(self, name: str, **default: bool) -> None:
        """Add ``--name`` and ``--no_name``."""
        value = default.get("default", self._default(name))
        text = f"{self.said[name]} [{'yes' if value else 'no'}]"
        self.group.add_argument(f"--{name}", action=ActionYesNo, default=value, help=text)

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
    arguments = _together(read_configs(expand(argv, SHORT, LISTS), SHORT), "--teacher")
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


def _together(arguments: Sequence[str], option: str) -> list[str]:
    """Make one list of an option that is given several times: ``--teacher A --teacher B``."""
    values = [value for name, value in words(arguments) if name == option and value is not None]
    if len(values) < 2:
        return list(arguments)
    kept = [word for name, value in words(arguments) if name != option for word in (name, value) if word is not None]
    return [*kept, option, json.dumps(values)]


def _preset(name: str, student: str) -> dict[str, Any]:
    return asdict(as_recipe(name, student))


def add_teachers(group: Group, without: Collection[str] = (), **default: Any) -> None:
    """Add the teachers and how they are computed, but for options that mean nothing to a method."""
    kinds: dict[str, tuple[Any, str | None]] = {
        "teacher": (list[str] | str, "MODEL"),
        "teacher_epochs": (int | None, None),
        "teacher_normalisation": (Normalisation, None),
        "teacher_precision": (TeacherPrecision, None),
        "teacher_cache": (str | None, "DIR"),
        "label_map": (dict[str, str] | None, None),
        "teacher_taps": (list[str], None),
    }
    for name, (kind, metavar) in kinds.items():
        if name in group.parameters and name not in without:
            group.add(name, kind, metavar, **(default if name == "teacher" else {}))


def add_data_and_recipe(parser: ArgumentParser, early: Mapping[str, str]) -> None:
    """Add the groups of the data and of the recipe, whose defaults are those of the chosen preset."""
    parser.add_class_arguments(DataOptions, "data")
    retitle(parser, "data", "data", "short for --data.name NAME; or a YAML file with the options of the data")
    recipe = as_recipe(early["preset"], early["student"])
    parser.add_class_arguments(Recipe, "recipe")
    parser.set_defaults({f"recipe.{name}": getattr(recipe, name) for name in Recipe.__dataclass_fields__})
    text = f"a preset, which the options below refine: {', '.join(PRESETS)} [quick]"
    retitle(parser, "recipe", "recipe", text)


def add_training(group: Group, eval_every: Any) -> None:
    """Add where and how to train."""
    group.add("device", Device)
    group.add("precision", Precision)
    group.yes_no("compile")
    group.add("eval_every", eval_every)


def add_output(group: Group) -> None:
    """Add the run directory and what is printed."""
    group.add("out", str, "DIR")
    group.flag("resume")
    group.flag("overwrite")
    group.flag("json", "print the result as one JSON object on standard output, and all else on standard error")
    group.flag("quiet", "show no progress")


def job_arguments(options: Namespace) -> dict[str, Any]:
    """Return the shared options as the library takes them."""
    return {
        "student": options.student,
        "data": DataOptions(**plain(options.data)),
        "recipe": Recipe(**{**plain(options.recipe), "milestones": tuple(options.recipe.milestones)}),
        "show_progress": not options.quiet,
        # A class named 7 is a number to YAML.
        "label_map": {str(own): str(other) for own, other in (options.get("label_map") or {}).items()} or None,
        **{name: options[name] for name in COMMON if name in options},
    }
