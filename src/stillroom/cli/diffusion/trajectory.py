"""``stillroom diffusion trajectory``: parse, call the library, print which claims hold."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group
from stillroom.cli._output import print_result, say
from stillroom.cli._parser import add_config, new_parser, parse
from stillroom.cli.diffusion._model import MODEL_OPTIONS, add_model, model_of
from stillroom.diffusion.geometry.report import study_trajectories
from stillroom.training.fabric import torch_device

__all__ = ["build_parser", "run"]

DESCRIPTION = "Measure and draw the geometry of sampling trajectories, and check what the papers claim about it."


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("diffusion trajectory", DESCRIPTION)
    add_config(parser)
    add_model(parser)
    group = Group(parser, "trajectories", study_trajectories)
    group.add("samples", int)
    group.add("steps", int)
    group.add("rho", float)
    group.add("label", int | None)
    group.add("data", str | None)
    group.add("data_images", int | None)
    group.add("seed", int)
    output = Group(parser, "output", study_trajectories)
    output.add("out", str, "DIR")
    output.flag("overwrite")
    output.flag("json", "print the result as one JSON object on standard output, and all else on standard error")
    output.flag("quiet", "show no progress")
    return parser


def run(argv: Sequence[str]) -> int:
    """Measure, print the claims and where the report lies."""
    options = parse(build_parser(), argv)
    done = study_trajectories(
        model_of(options),
        samples=options.samples,
        steps=options.steps,
        rho=options.rho,
        label=options.label,
        data=options.data,
        data_images=options.data_images,
        seed=options.seed,
        device=torch_device(options.device),
        out=options.out,
        config={name: getattr(options, name) for name in MODEL_OPTIONS},
        show_progress=not options.quiet,
        overwrite=options.overwrite,
    )
    if options.json:
        print_result(done.result)
    stream = sys.stderr if options.json else sys.stdout
    for claim in done.claims:
        say(f"{'holds' if claim.holds else 'FAILS'}  {claim.name}: {claim.measured}", stream)
    print(f"\nreport: {done.out / 'report.html'}", file=stream)
    return 0
