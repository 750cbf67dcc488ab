"""``stillroom diffusion bench``: parse, call the library, print the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group, add_output
from stillroom.cli._output import print_result, show_table
from stillroom.cli._parser import add_config, expand, new_parser, parse
from stillroom.cli.diffusion._model import MODEL_OPTIONS, add_model, model_of
from stillroom.diffusion.bench import bench
from stillroom.training.fabric import torch_device

__all__ = ["build_parser", "run"]

DESCRIPTION = "Measure solvers x schedules on a model: distance to a fine reference against evaluations."
OPTIONS = (
    *("nfe", "solvers", "schedules", "files", "count", "reference_steps", "batch_size", "classifier", "fid", "data"),
    *("seed", "out", "resume", "overwrite"),
)


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("diffusion bench", DESCRIPTION)
    add_config(parser)
    add_model(parser)
    compared = Group(parser, "compared", bench)
    compared.add("nfe", list[int])
    compared.add("solvers", list[str])
    compared.add("schedules", list[str])
    compared.add("files", list[str])
    measured = Group(parser, "measured", bench)
    measured.add("count", int)
    measured.add("reference_steps", int)
    measured.add("batch_size", int)
    measured.add("classifier", str | None, "DIR")
    measured.yes_no("fid")
    measured.add("data", str | None)
    measured.add("seed", int)
    add_output(Group(parser, "output", bench))
    return parser


def run(argv: Sequence[str]) -> int:
    """Measure, print the table and where the report lies."""
    lists = ("--nfe", "--solvers", "--schedules", "--files")
    options = parse(build_parser(), expand(argv, {}, lists))
    done = bench(
        model_of(options),
        **{name: getattr(options, name) for name in OPTIONS},
        device=torch_device(options.device),
        config={name: getattr(options, name) for name in MODEL_OPTIONS},
        show_progress=not options.quiet,
    )
    if options.json:
        print_result(done.result)
    stream = sys.stderr if options.json else sys.stdout
    show_table(done.table, stream)
    print(f"\nreport: {done.out / 'report.html'}", file=stream)
    return 0
