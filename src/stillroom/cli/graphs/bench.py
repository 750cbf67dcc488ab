"""``stillroom graphs bench``: parse, call the library, print the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group, add_output
from stillroom.cli._parser import add_config, new_parser, parse
from stillroom.cli.graphs._options import add_groups, arguments, built, show
from stillroom.graphs.bench import bench
from stillroom.graphs.training import Init
from stillroom.training.fabric import Device, Precision

__all__ = ["build_parser", "run"]

DESCRIPTION = "Compare methods for graph neural networks over seeds: mean, confidence interval, paired differences."
PLAIN = (
    *("methods", "seeds", "method_options", "students", "init", "redraw", "jobs", "device", "precision", "eval_every"),
    *("out", "resume", "overwrite"),
)


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("graphs bench", DESCRIPTION)
    add_config(parser)
    compared = Group(parser, "compared", bench)
    compared.add("methods", list[str])
    compared.add("seeds", list[int])
    compared.add("method_options", dict[str, dict[str, Any]] | None, "'{METHOD: {NAME: VALUE}}'")
    compared.add("students", int)
    compared.add("init", Init)
    compared.yes_no("redraw")
    add_groups(parser)
    training = Group(parser, "training", bench)
    training.add("jobs", int)
    training.add("device", Device)
    training.add("precision", Precision)
    training.add("eval_every", int)
    add_output(Group(parser, "output", bench))
    return parser


def run(argv: Sequence[str]) -> int:
    """Run the bench, print the table and where the report lies."""
    options = parse(build_parser(), arguments(argv))
    done = bench(**built(options), **{name: getattr(options, name) for name in PLAIN}, show_progress=not options.quiet)
    stream = show(done, as_json=options.json)
    print(f"report: {done.out / 'report.html'}", file=stream)
    return 0
