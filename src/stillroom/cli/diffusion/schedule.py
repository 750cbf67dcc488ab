"""``stillroom diffusion schedule``: parse, call the library, print what was found beside what is usual."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group
from stillroom.cli._output import print_result, show_table
from stillroom.cli._parser import add_config, new_parser, parse, read_configs
from stillroom.cli.diffusion._model import add_guidance, add_model, model_of
from stillroom.diffusion.search import Way, search_schedule
from stillroom.training.fabric import torch_device

__all__ = ["build_parser", "run"]

DESCRIPTION = "Search noise levels and solver for a model and a number of evaluations."
OPTIONS = (
    *("method", "nfe", "solver", "order", "coefficient", "count", "trajectories", "cost", "seed", "out", "overwrite"),
)


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("diffusion schedule", DESCRIPTION)
    add_config(parser)
    add_model(parser)
    add_guidance(parser)
    search = Group(parser, "search", search_schedule)
    search.add("method", Way)
    search.add("nfe", int)
    search.add("solver", str)
    search.add("order", int | None)
    search.add("coefficient", float)
    search.add("count", int | None)
    search.add("trajectories", int)
    search.add("cost", str | None, "FILE")
    search.add("seed", int)
    output = Group(parser, "output", search_schedule)
    output.add("out", str | None, "FILE")
    output.flag("overwrite")
    output.flag("json", "print the result as one JSON object on standard output, and all else on standard error")
    output.flag("quiet", "show no progress")
    return parser


def run(argv: Sequence[str]) -> int:
    """Search, print the table and where the file lies."""
    options = parse(build_parser(), read_configs(argv, {}))
    found = search_schedule(
        model_of(options),
        **{name: getattr(options, name) for name in OPTIONS},
        device=torch_device(options.device),
        show_progress=not options.quiet,
    )
    if options.json:
        print_result(found.result)
    stream = sys.stderr if options.json else sys.stdout
    show_table(found.table, stream)
    print(f"\nnoise levels: {', '.join(f'{sigma:.4g}' for sigma in found.sampler.sigmas)}", file=stream)
    print(f"schedule: {found.out}   next: stillroom diffusion sample --schedule {found.out}", file=stream)
    return 0
