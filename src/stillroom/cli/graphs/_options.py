"""The options ``graphs distill`` and ``graphs bench`` share: network, data, sampling, recipe."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TextIO

from jsonargparse import ArgumentParser, Namespace

from stillroom.cli._help import retitle
from stillroom.cli._output import print_result, say, show_table
from stillroom.cli._parser import expand, plain, read_configs
from stillroom.graphs.bench import Bench
from stillroom.graphs.distill import NETWORK, RECIPE, Distilled
from stillroom.graphs.networks import GNNOptions
from stillroom.graphs.options import GraphDataOptions, SBMOptions
from stillroom.graphs.report import LEGEND
from stillroom.graphs.training import SamplingOptions
from stillroom.training.recipe import Recipe

__all__ = ["add_groups", "arguments", "built", "show"]

SHORT = {"--data": "--data.name", "--method": "--method.name"}
LISTS = ("--methods", "--seeds", "--sampling.fanout", "--recipe.milestones")
GROUPS: tuple[tuple[str, type[Any], Any], ...] = (
    ("network", GNNOptions, NETWORK),
    ("data", GraphDataOptions, GraphDataOptions()),
    ("sbm", SBMOptions, SBMOptions()),
    ("sampling", SamplingOptions, SamplingOptions()),
    ("recipe", Recipe, RECIPE),
)
TITLES = {"sbm": "generated graph (--data sbm)"}


def arguments(argv: Sequence[str]) -> list[str]:
    """Expand short forms and configuration files."""
    return read_configs(expand(argv, SHORT, LISTS), SHORT)


def add_groups(parser: ArgumentParser) -> None:
    """Add the groups with their defaults."""
    for name, kind, default in GROUPS:
        parser.add_class_arguments(kind, name)
        parser.set_defaults({f"{name}.{field.name}": getattr(default, field.name) for field in fields(kind)})
        retitle(parser, name, TITLES.get(name, name), f"a YAML file with the options of the {name}", "FILE")
    retitle(parser, "data", "data", "short for --data.name NAME; or a YAML file with the options of the data")


def built(options: Namespace) -> dict[str, Any]:
    """Return the groups as the library takes them."""
    return {name: _build(kind, options[name]) for name, kind, _ in GROUPS}


def show(done: Distilled | Bench, *, as_json: bool) -> TextIO:
    """Print the data's counts, the table and what is to be known of it; return the stream that is for people."""
    if as_json:
        print_result(done.result)
    stream = sys.stderr if as_json else sys.stdout
    _say_counts(done.result["data"], stream)
    show_table(done.table, stream)
    print(file=stream)
    for sentence in (LEGEND, *done.result["notes"]):
        say(sentence, stream)
    return stream


def _say_counts(about: Mapping[str, Any], stream: TextIO) -> None:
    counts = ", ".join(f"{about[name]:,} {name}" for name in ("nodes", "edges", "features", "classes"))
    splits = ", ".join(f"{about[f'{split}_nodes']:,} {split}" for split in ("train", "val", "test"))
    say(f"{about['name']}: {counts}; {splits} nodes", stream)
    for note in about["notes"]:
        say(f"  {note}", stream)
    print(file=stream)


def _build(kind: type[Any], options: Namespace) -> Any:
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in plain(options).items()}
    return kind(**given)
