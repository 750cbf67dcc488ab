"""``stillroom screening tune``: parse, call the library, print what the choice is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group, add_output
from stillroom.cli._output import say, show_table
from stillroom.cli._parser import add_config, new_parser, parse
from stillroom.cli.screening._options import add_counting, add_data, arguments, data_of, tell_data
from stillroom.screening.protocols import Setting
from stillroom.screening.report import LEGEND
from stillroom.screening.tune import tune

__all__ = ["build_parser", "run"]

DESCRIPTION = "Choose a method's options by nested cross-validation, and say what the choice is worth."
SHORT = {"--data": "--data.name"}
PLAIN = (
    *("method", "setting", "grid", "method_options", "by", "num_folds", "inner_folds", "seed", "decoys", "ratio"),
    *("group_twins", "jobs", "out", "resume", "overwrite"),
)


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("screening tune", DESCRIPTION)
    add_config(parser)
    search = Group(parser, "search", tune)
    search.add("method", str, "NAME")
    search.add("setting", Setting)
    search.add("grid", dict[str, list[Any]] | None, "'{NAME: [VALUE, ...]}'")
    search.add("method_options", dict[str, Any] | None, "'{NAME: VALUE}'")
    search.add("by", str, "MEASURE")
    search.add("num_folds", int)
    search.add("inner_folds", int)
    search.add("seed", int)
    add_data(parser)
    add_counting(Group(parser, "what counts", tune))
    Group(parser, "work", tune).add("jobs", int)
    add_output(Group(parser, "output", tune))
    return parser


def run(argv: Sequence[str]) -> int:
    """Search, print the tables, the chosen options and where the report lies."""
    options = parse(build_parser(), arguments(argv, short=SHORT))
    own = {name: getattr(options, name) for name in PLAIN}
    done = tune(data=data_of(options), **own, show_progress=not options.quiet)
    stream = tell_data(done.result, as_json=options.json)
    show_table(done.table, stream)
    print(file=stream)
    show_table(done.points, stream)
    print(file=stream)
    for sentence in (LEGEND, done.result["decoys"], *done.result["notes"]):
        say(sentence, stream)
    print(file=stream)
    words = [f"--method.{name} {json.dumps(value).strip(chr(34))}" for name, value in done.result["chosen"].items()]
    say(f"options for predict, with the same --data: --method {options.method} {' '.join(words)}", stream)
    print(f"report: {done.out / 'report.html'}", file=stream)
    return 0
