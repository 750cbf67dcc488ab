"""``stillroom bench``: parse, call the library, print the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from stillroom.cli._job import (
    Group,
    add_data_and_recipe,
    add_output,
    add_teachers,
    add_training,
    job_arguments,
    prepare,
)
from stillroom.cli._output import print_result, say, show_table
from stillroom.cli._parser import add_config, new_parser, parse
from stillroom.distillation.bench import bench
from stillroom.distillation.offline._method import Convention

__all__ = ["build_parser", "run"]

DESCRIPTION = "Compare methods over seeds: mean with 95 % confidence interval and paired differences."


def build_parser(argv: Sequence[str]) -> tuple[ArgumentParser, list[str]]:
    """Return the parser and the arguments left to parse."""
    rest, early = prepare(argv)
    parser = new_parser("bench", DESCRIPTION)
    add_config(parser)
    compared = Group(parser, "compared", bench)
    compared.add("methods", list[str])
    compared.add("seeds", list[int])
    compared.add("method_options", dict[str, dict[str, Any]] | None, "'{METHOD: {NAME: VALUE}}'")
    compared.add("weights", Convention)
    compared.add("temperature", float)
    networks = Group(parser, "networks", bench)
    networks.add("student", str, "MODEL")
    add_teachers(networks)
    networks.add("peers", int)
    networks.add("branch", str, "auto|none|PATH")
    add_data_and_recipe(parser, early)
    training = Group(parser, "training", bench)
    training.add("jobs", int)
    add_training(training, int | None)
    add_output(Group(parser, "output", bench))
    return parser, rest


def run(argv: Sequence[str]) -> int:
    """Run the bench, print the table and where the report lies."""
    parser, rest = build_parser(argv)
    options = parse(parser, rest)
    done = bench(
        **job_arguments(options),
        methods=options.methods,
        seeds=options.seeds,
        method_options=options.method_options,
        jobs=options.jobs,
    )
    if options.json:
        print_result(done.result)
    stream = sys.stderr if options.json else sys.stdout
    for table in done.tables:
        show_table(table, stream)
    for note in done.result["notes"]:
        say(note, stream)
    print(file=stream)
    for name, accuracy in done.result["teachers"].items():
        print(f"{name}: {accuracy:.2f} %", file=stream)
    print(f"report: {done.out / 'report.html'}", file=stream)
    return 0
