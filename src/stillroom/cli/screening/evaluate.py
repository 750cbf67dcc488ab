"""``stillroom screening evaluate``: parse, call the library, print a table for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group, add_output
from stillroom.cli._output import say, show_table
from stillroom.cli._parser import add_config, new_parser, parse
from stillroom.cli.screening._options import add_counting, add_data, arguments, data_of, tell_data
from stillroom.screening.evaluate import evaluate
from stillroom.screening.report import LEGEND, SETTINGS

__all__ = ["build_parser", "run"]

DESCRIPTION = "Cross-validate methods of drug-target screening for new pairs, new drugs and new targets."
SHORT = {"--data": "--data.name"}
PLAIN = (
    *("methods", "settings", "seeds", "num_folds", "method_options", "tuned", "inner_folds", "by", "decoys", "ratio"),
    *("group_twins", "jobs", "out", "resume", "overwrite"),
)


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("screening evaluate", DESCRIPTION)
    add_config(parser)
    compared = Group(parser, "compared", evaluate)
    compared.add("methods", list[str])
    compared.add("settings", list[str])
    compared.add("seeds", list[int])
    compared.add("num_folds", int)
    compared.add("method_options", dict[str, dict[str, Any]] | None, "'{METHOD: {NAME: VALUE}}'")
    compared.yes_no("tuned")
    compared.add("inner_folds", int)
    compared.add("by", str, "MEASURE")
    add_data(parser)
    add_counting(Group(parser, "what counts", evaluate))
    Group(parser, "work", evaluate).add("jobs", int)
    add_output(Group(parser, "output", evaluate))
    return parser


def run(argv: Sequence[str]) -> int:
    """Evaluate, print the tables and where the report lies."""
    options = parse(build_parser(), arguments(argv, short=SHORT))
    own = {name: getattr(options, name) for name in PLAIN}
    done = evaluate(data=data_of(options), **own, show_progress=not options.quiet)
    stream = tell_data(done.result, as_json=options.json)
    for setting, table in done.tables.items():
        found = done.result["settings"][setting]
        say(f"{setting}: {SETTINGS[setting]}, {found['folds']} folds a seed", stream)
        for note in found["notes"]:
            say(f"  {note}", stream)
        print(file=stream)
        show_table(table, stream)
        print(file=stream)
    for sentence in (LEGEND, done.result["decoys"], *done.result["notes"]):
        say(sentence, stream)
    print(f"report: {done.out / 'report.html'}", file=stream)
    return 0
