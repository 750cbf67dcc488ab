"""``stillroom distill``: parse, call the library, print the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from jsonargparse import ArgumentParser

from stillroom.cli._job import add_help, add_job, job_arguments, prepare, yes_no
from stillroom.cli._parser import describe_group, descriptions, new_parser, parse, peek, plain, print_result
from stillroom.distillation.distill import distill
from stillroom.distillation.methods import METHODS, method_class
from stillroom.distillation.networks import Normalisation
from stillroom.reports.html import comparison_table, headline
from stillroom.reports.tables import print_table
from stillroom.training.fabric import Device, Precision
from stillroom.training.teacher import Precision as TeacherPrecision

__all__ = ["build_parser", "run"]


def build_parser(argv: Sequence[str]) -> tuple[ArgumentParser, list[str]]:
    """Return the parser with the chosen method's own options, and the arguments left to parse."""
    rest, early = prepare(argv)
    name = peek(rest, "--method.name") or "kd"
    method = method_class(name)
    said = descriptions(distill)
    parser = new_parser(
        "distill", "Train a small classifier from a large one and compare teacher, student alone and distilled student."
    )
    add_job(parser, said, early)
    parser.add_argument("--method.name", type=str, default="kd", help=f"one of: {', '.join(METHODS)}")
    parser.add_class_arguments(method, "method")
    describe_group(parser, "method", "short for --method.name NAME; the options below are this method's own")
    add_help(parser, "weights", Literal["simkd", "crd"] | dict[str, float], "simkd", said)
    add_help(parser, "temperature", float, 4.0, said)
    yes_no(parser, "baseline", True, said["baseline"])
    add_help(parser, "teacher_epochs", int | None, None, said)
    add_help(parser, "teacher_normalisation", Normalisation, "data", said)
    add_help(parser, "teacher_precision", TeacherPrecision, "32", said)
    add_help(parser, "teacher_cache", str | None, None, said)
    add_help(parser, "label_map", dict[str, str] | None, None, said)
    add_help(parser, "student_taps", list[str], [], said)
    add_help(parser, "teacher_taps", list[str], [], said)
    add_help(parser, "out", str, "runs/distill", said)
    add_help(parser, "seed", int, 0, said)
    add_help(parser, "device", Device, "auto", said)
    add_help(parser, "precision", Precision, "32", said)
    yes_no(parser, "compile", False, said["compile"])
    add_help(parser, "eval_every", int, 1, said)
    add_help(parser, "checkpoint_every", int | None, None, said)
    yes_no(parser, "tensorboard", False, said["tensorboard"])
    parser.add_argument("--resume", action="store_true", help=said["resume"])
    parser.add_argument("--overwrite", action="store_true", help=said["overwrite"])
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser, rest


def run(argv: Sequence[str]) -> int:
    """Distil, print the comparison and where the report lies."""
    parser, rest = build_parser(argv)
    options = parse(parser, rest)
    own = {name: value for name, value in plain(options.method).items() if name != "name"}
    taken = (
        *("temperature", "baseline", "teacher_epochs", "teacher_normalisation", "teacher_precision", "teacher_cache"),
        *("label_map", "student_taps", "teacher_taps", "out", "seed", "device", "precision", "compile", "eval_every"),
        *("checkpoint_every", "tensorboard", "resume", "overwrite"),
    )
    distilled = distill(
        **job_arguments(options),
        method=method_class(options.method.name)(**own),
        weights=options.weights,
        show_progress=not options.quiet,
        **{name: getattr(options, name) for name in taken},
    )
    if distilled.writes:
        if options.json:
            print_result(distilled.result)
        stream = sys.stderr if options.json else sys.stdout
        print_table(comparison_table(distilled.rows), file=stream)
        print(f"\n{headline(distilled.rows)}", file=stream)
        if (agreement := distilled.result["teacher_agreement"]) is not None:
            print(
                f"teacher in bfloat16: same class as float32 on {100 * agreement['top1']:.2f} % of a test batch",
                file=stream,
            )
        print(f"report: {distilled.out / 'report.html'}", file=stream)
    return 0
