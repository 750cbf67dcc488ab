"""``stillroom distill``: parse, call the library, print the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from stillroom.cli._help import retitle
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
from stillroom.cli._parser import add_config, new_parser, parse, plain
from stillroom.distillation.choices import NOT_FOR, TEACHERS
from stillroom.distillation.distill import distill
from stillroom.distillation.methods import METHODS, family_of, method_class
from stillroom.distillation.offline._method import Convention
from stillroom.hyperparameters import method_defaults
from stillroom.reports.html import comparison_table, headline

__all__ = ["build_parser", "run"]

DESCRIPTION = "Train a small classifier by a distillation method and compare it with its teachers and itself alone."


def build_parser(argv: Sequence[str]) -> tuple[ArgumentParser, list[str]]:
    """Return the parser with the options of the chosen method and its family, and the arguments left to parse."""
    rest, early = prepare(argv)
    method, family = method_class(early["method"]), family_of(early["method"])
    parser = new_parser("distill", DESCRIPTION)
    add_config(parser)
    networks = Group(parser, "networks", distill)
    networks.add("student", str, "MODEL")
    networks.add("student_taps", list[str])
    usual = list(TEACHERS[family])
    add_teachers(networks, NOT_FOR[family], default=usual if family == "multi_teacher" else "".join(usual[:1]))
    if family == "online":
        networks.add("peers", int)
        networks.add("branch", str, "auto|none|PATH")
    text = f"one of {', '.join(METHODS)}; --method NAME for short"
    parser.add_argument_group("method").add_argument("--method.name", type=str, metavar="NAME", default="kd", help=text)
    parser.add_class_arguments(method, "method")
    if method_defaults(method):
        title = f"options of {early['method']} (--method NAME --help shows another's)"
        retitle(parser, "method", title, "short for --method.name NAME")
    if family == "offline":
        objective = Group(parser, "objective", distill)
        objective.add("weights", Convention | dict[str, float], "NAME")
        objective.add("temperature", float)
    add_data_and_recipe(parser, early)
    training = Group(parser, "training", distill)
    training.yes_no("baseline", default=family != "data_free")
    training.add("seed", int)
    add_training(training, int)
    training.add("checkpoint_every", int | None)
    training.yes_no("tensorboard")
    add_output(Group(parser, "output", distill))
    return parser, rest


def run(argv: Sequence[str]) -> int:
    """Distil, print the comparison and where the report lies."""
    if family_of(prepare(argv)[1]["method"]) == "translation":
        from stillroom.cli._translate import run as translate

        return translate(argv)
    parser, rest = build_parser(argv)
    options = parse(parser, rest)
    own = {name: value for name, value in plain(options.method).items() if name != "name"}
    distilled = distill(
        **job_arguments(options),
        method=method_class(options.method.name)(**own),
        baseline=options.baseline,
        student_taps=options.student_taps,
        teacher_taps=options.get("teacher_taps") or (),
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
        for note in distilled.result["notes"]:
            say(note, stream)
        print(f"report: {distilled.out / 'report.html'}", file=stream)
    return 0
