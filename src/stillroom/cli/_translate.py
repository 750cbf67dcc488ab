"""``stillroom distill --method kt``: parse, call the library, print what translated blocks are worth."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser

from stillroom.cli._help import retitle
from stillroom.cli._job import Group, add_output
from stillroom.cli._output import print_result, say, show_table
from stillroom.cli._parser import add_config, expand, new_parser, parse, plain, read_configs
from stillroom.data.options import DataOptions
from stillroom.distillation.translation.kt import KT
from stillroom.distillation.translation.pairs import PairOptions
from stillroom.distillation.translation.translate import DATA, METHOD, RECIPE, translate
from stillroom.hyperparameters import method_options
from stillroom.training.fabric import Device
from stillroom.training.recipe import Recipe

__all__ = ["build_parser", "run"]

DESCRIPTION = "Train a network that writes small blocks' weights from those of large blocks, and judge what it writes."
SHORT = {"--data": "--data.name", "--method": "--method.name"}
LISTS = ("--steps", "--recipe.milestones")
GROUPS: tuple[tuple[str, type[Any], dict[str, Any]], ...] = (
    ("data", DataOptions, {field.name: getattr(DATA, field.name) for field in fields(DataOptions)}),
    ("method", KT, method_options(METHOD)),
    ("pairs", PairOptions, {field.name: field.default for field in fields(PairOptions)}),
    ("recipe", Recipe, {field.name: getattr(RECIPE, field.name) for field in fields(Recipe)}),
)
PLAIN = ("seed", "device", "jobs", "eval_every", "checkpoint_every", "out", "resume", "overwrite")


def build_parser(argv: Sequence[str]) -> tuple[ArgumentParser, list[str]]:
    """Return the parser, and the arguments left to parse; ``--method kt`` may be among them."""
    parser = new_parser("distill", DESCRIPTION, "--method kt ")
    add_config(parser)
    for name, kind, defaults in GROUPS:
        if name == "method":
            method = parser.add_argument_group("method")
            method.add_argument(
                "--method.name", type=str, metavar="NAME", default="kt", help="kt, which this page is of"
            )
        parser.add_class_arguments(kind, name)
        parser.set_defaults({f"{name}.{option}": value for option, value in defaults.items()})
        retitle(parser, name, name, f"a YAML file with the options of the {name}", "FILE")
    retitle(parser, "data", "data", "short for --data.name NAME; or a YAML file with the options of the data")
    retitle(parser, "method", "options of kt (smaller than the paper's, for a CPU)", "short for --method.name kt")
    retitle(parser, "pairs", "pairs of blocks", "a YAML file with the options of the pairs", "FILE")
    training = Group(parser, "training", translate)
    training.add("steps", list[int])
    training.add("seed", int)
    training.add("device", Device)
    training.add("jobs", int)
    training.add("eval_every", int)
    training.add("checkpoint_every", int | None)
    add_output(Group(parser, "output", translate))
    return parser, read_configs(expand(argv, SHORT, LISTS), SHORT)


def run(argv: Sequence[str]) -> int:
    """Translate, print the comparison and where the report lies."""
    parser, rest = build_parser(argv)
    options = parse(parser, rest)
    built = {name: kind(**_given(options, name)) for name, kind, _ in GROUPS}
    done = translate(
        **built,
        **{name: getattr(options, name) for name in PLAIN},
        steps=tuple(options.steps),
        show_progress=not options.quiet,
    )
    if done.writes:
        if options.json:
            print_result(done.result)
        stream = sys.stderr if options.json else sys.stdout
        show_table(done.table, stream)
        print(file=stream)
        for sentence in (done.result["headline"], *done.result["notes"]):
            say(sentence, stream)
        print(f"report: {done.out / 'report.html'}", file=stream)
    return 0


def _given(options: Any, name: str) -> dict[str, Any]:
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in plain(options[name]).items()}
    return {key: value for key, value in given.items() if (name, key) != ("method", "name")}
