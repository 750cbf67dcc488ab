"""``stillroom diffusion train``: parse, call the library, print what came out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from stillroom.cli._help import retitle
from stillroom.cli._job import Group, add_output, add_training
from stillroom.cli._output import print_result
from stillroom.cli._parser import add_config, expand, new_parser, parse, plain, read_configs
from stillroom.data.options import DataOptions
from stillroom.diffusion.network import NetworkOptions
from stillroom.diffusion.task import NoiseOptions
from stillroom.diffusion.training import DATA, RECIPE, train
from stillroom.training.recipe import Recipe

__all__ = ["build_parser", "run"]

DESCRIPTION = (
    "Train a small diffusion model of images; sample from it with: stillroom diffusion sample --model RUN_DIR."
)
SHORT = {"--data": "--data.name"}
LISTS = ("--network.multipliers", "--network.attention", "--recipe.milestones")
GROUPS: tuple[tuple[str, type[Any], Any], ...] = (
    ("data", DataOptions, DATA),
    ("network", NetworkOptions, NetworkOptions()),
    ("noise", NoiseOptions, NoiseOptions()),
    ("recipe", Recipe, RECIPE),
)
PLAIN = (
    *("conditional", "half", "out", "seed", "device", "precision", "compile", "eval_every", "checkpoint_every"),
    *("tensorboard", "resume", "overwrite"),
)


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("diffusion train", DESCRIPTION)
    add_config(parser)
    for name, kind, default in GROUPS:
        parser.add_class_arguments(kind, name)
        parser.set_defaults({f"{name}.{field.name}": getattr(default, field.name) for field in fields(kind)})
        retitle(parser, name, name, f"a YAML file with the options of the {name}", "FILE")
    retitle(parser, "data", "data", "short for --data.name NAME; or a YAML file with the options of the data")
    model = Group(parser, "model", train)
    model.yes_no("conditional")
    model.yes_no("half")
    training = Group(parser, "training", train)
    training.add("seed", int)
    add_training(training, int)
    training.add("checkpoint_every", int | None)
    training.yes_no("tensorboard")
    add_output(Group(parser, "output", train))
    return parser


def run(argv: Sequence[str]) -> int:
    """Train, print the losses and where the model lies."""
    options = parse(build_parser(), read_configs(expand(argv, SHORT, LISTS), SHORT))
    trained = train(
        **{name: _build(kind, getattr(options, name)) for name, kind, _ in GROUPS},
        **{name: getattr(options, name) for name in PLAIN},
        show_progress=not options.quiet,
    )
    if trained.writes:
        if options.json:
            print_result(trained.result)
        stream = sys.stderr if options.json else sys.stdout
        result = trained.result
        print(f"denoising loss: {result['train_loss']:.4g} training, {result['test_loss']:.4g} test", file=stream)
        print(f"model: {trained.out}   report: {trained.out / 'report.html'}", file=stream)
        print(f"next: stillroom diffusion sample --model {trained.out}", file=stream)
    return 0


def _build(kind: type[Any], options: Namespace) -> Any:
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in plain(options).items()}
    return kind(**given)
