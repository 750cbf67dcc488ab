"""``stillroom diffusion sample``: parse, call the library, print where the pictures are."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group, add_output
from stillroom.cli._output import print_result
from stillroom.cli._parser import add_config, new_parser, parse, read_configs
from stillroom.cli.diffusion._model import GUIDANCE_OPTIONS, MODEL_OPTIONS, add_guidance, add_model, model_of
from stillroom.diffusion.draw import draw
from stillroom.training.fabric import torch_device

__all__ = ["build_parser", "run"]

DESCRIPTION = "Draw samples from a diffusion model in a few evaluations, one PNG a seed."
OPTIONS = (
    *("count", "solver", "order", "nfe", "schedule", "rho", "afs", "denoise_to_zero", "seed", "batch_size"),
    *("out", "resume", "overwrite"),
)


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("diffusion sample", DESCRIPTION)
    add_config(parser)
    add_model(parser)
    add_guidance(parser)
    sampler = Group(parser, "sampler", draw)
    sampler.add("solver", str | None)
    sampler.add("order", int | None)
    sampler.add("nfe", int | None)
    sampler.add("schedule", str | None)
    sampler.add("rho", float | None)
    sampler.yes_no("afs")
    sampler.yes_no("denoise_to_zero")
    samples = Group(parser, "samples", draw)
    samples.add("count", int)
    text = samples.said["class_name"]
    samples.group.add_argument("--class", type=str | int | None, default=None, metavar="NAME", help=text)
    samples.add("seed", int)
    samples.add("batch_size", int)
    add_output(Group(parser, "output", draw))
    return parser


def run(argv: Sequence[str]) -> int:
    """Draw the samples and print where they are."""
    options = parse(build_parser(), read_configs(argv, {}))
    label = getattr(options, "class")
    drawn = draw(
        model_of(options),
        **{name: getattr(options, name) for name in OPTIONS},
        class_name=None if label is None else str(label),
        device=torch_device(options.device),
        config={name: getattr(options, name) for name in (*MODEL_OPTIONS, *GUIDANCE_OPTIONS)},
        show_progress=not options.quiet,
    )
    if options.json:
        print_result(drawn.result)
    stream = sys.stderr if options.json else sys.stdout
    result = drawn.result
    print(f"{result['count']} samples by {result['sampler']}, {result['nfe']} evaluations each", file=stream)
    print(f"pictures: {drawn.out}   all in one: {drawn.out / 'grid.png'}", file=stream)
    return 0
