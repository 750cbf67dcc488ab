"""``stillroom distill``: parse, call the library, print the table."""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from typing import Literal

from jsonargparse import ArgumentParser

from stillroom.cli._help import descriptions, retitle
from stillroom.cli._job import (
    Group,
    add_data_and_recipe,
    add_networks,
    add_output,
    add_training,
    job_arguments,
    prepare,
)
from stillroom.cli._output import print_result, say, show_table
from stillroom.cli._parser import add_config, new_parser, parse, plain
from stillroom.distillation.distill import distill
from stillroom.distillation.methods import METHODS, method_class
from stillroom.reports.html import comparison_table, headline

__all__ = ["build_parser", "run"]

DESCRIPTION = "Train a small classifier from a large one and compare teacher, student alone and distilled student."


def build_parser(argv: Sequence[str]) -> tuple[ArgumentParser, list[str]]:
    """Return the parser with the chosen method's own options, and the arguments left to parse."""
    rest, early = prepare(argv)
    method = method_class(early["method"])
    said = descriptions(distill)
    parser = new_parser("distill", DESCRIPTION)
    add_config(parser)
    networks = Group(parser, "networks", said)
    add_networks(networks)
    networks.add("label_map", dict[str, str] | None, None)
    networks.add("student_taps", list[str], [])
    networks.add("teacher_taps", list[str], [])
    parser.add_argument("--method.name", type=str, default="kd", help=SUPPRESS)
    parser.add_class_arguments(method, "method")
    retitle(
        parser, "method", f"method (the options of {early['method']}; --method NAME --help shows another's)", "NAME",
        f"{', '.join(METHODS)} [kd]",
    )  # fmt: skip
    objective = Group(parser, "objective", said)
    objective.add("weights", Literal["simkd", "crd"] | dict[str, float], "simkd", "NAME")
    objective.add("temperature", float, 4.0)
    add_data_and_recipe(parser, early)
    training = Group(parser, "training", said)
    training.yes_no("baseline", True)
    training.add("seed", int, 0)
    add_training(training, 1)
    training.add("checkpoint_every", int | None, None)
    training.yes_no("tensorboard", False)
    add_output(Group(parser, "output", said), "runs/distill")
    return parser, rest


def run(argv: Sequence[str]) -> int:
    """Distil, print the comparison and where the report lies."""
    parser, rest = build_parser(argv)
    options = parse(parser, rest)
    own = {name: value for name, value in plain(options.method).items() if name != "name"}
    distilled = distill(
        **job_arguments(options),
        method=method_class(options.method.name)(**own),
        baseline=options.baseline,
        label_map=options.label_map,
        student_taps=options.student_taps,
        teacher_taps=options.teacher_taps,
        seed=options.seed,
        checkpoint_every=options.checkpoint_every,
        tensorboard=options.tensorboard,
    )
    if distilled.writes:
        if options.json:
            print_result(distilled.result)
        stream = sys.stderr if options.json else sys.stdout
        show_table(comparison_table(distilled.rows), stream)
        print(file=stream)
        say(headline(distilled.rows), stream)
        if (agreement := distilled.result["teacher_agreement"]) is not None:
            same = f"{100 * agreement['top1']:.2f} %"
            say(f"teacher in bfloat16: same class as float32 on {same} of a test batch", stream)
        print(f"report: {distilled.out / 'report.html'}", file=stream)
    return 0
