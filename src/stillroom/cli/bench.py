"""``stillroom bench``: parse, call the library, print the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

from stillroom.cli._job import add_help, add_job, job_arguments, prepare, yes_no
from stillroom.cli._parser import descriptions, new_parser, parse, print_result
from stillroom.distillation.bench import bench
from stillroom.distillation.networks import Normalisation
from stillroom.reports.tables import print_table
from stillroom.training.fabric import Device, Precision
from stillroom.training.teacher import Precision as TeacherPrecision

__all__ = ["build_parser", "run"]


def build_parser(argv: Sequence[str]) -> tuple[Any, list[str]]:
    """Return the parser and the arguments left to parse."""
    rest, early = prepare(argv)
    said = descriptions(bench)
    parser = new_parser(
        "bench", "Compare methods over seeds: mean with 95 % confidence interval and paired differences."
    )
    add_help(parser, "methods", list[str], ["alone", "kd", "simkd", "rld"], said)
    add_help(parser, "seeds", list[int], [0, 1, 2], said)
    add_job(parser, said, early)
    add_help(parser, "weights", Literal["simkd", "crd"], "simkd", said)
    add_help(parser, "temperature", float, 4.0, said)
    add_help(parser, "method_options", dict[str, dict[str, Any]], {}, said)
    add_help(parser, "teacher_epochs", int | None, None, said)
    add_help(parser, "teacher_normalisation", Normalisation, "data", said)
    add_help(parser, "teacher_precision", TeacherPrecision, "32", said)
    add_help(parser, "teacher_cache", str | None, None, said)
    add_help(parser, "out", str, "runs/bench", said)
    add_help(parser, "jobs", int, 1, said)
    add_help(parser, "device", Device, "auto", said)
    add_help(parser, "precision", Precision, "32", said)
    yes_no(parser, "compile", False, said["compile"])
    add_help(parser, "eval_every", int | None, None, said)
    parser.add_argument("--resume", action="store_true", help=said["resume"])
    parser.add_argument("--overwrite", action="store_true", help=said["overwrite"])
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser, rest


def run(argv: Sequence[str]) -> int:
    """Run the bench, print the table and where the report lies."""
    parser, rest = build_parser(argv)
    options = parse(parser, rest)
    taken = (
        *("methods", "seeds", "weights", "temperature", "method_options", "teacher_epochs", "teacher_normalisation"),
        *("teacher_precision", "teacher_cache", "out", "jobs", "device", "precision", "compile", "eval_every"),
        *("resume", "overwrite"),
    )
    done = bench(
        **job_arguments(options), show_progress=not options.quiet, **{name: getattr(options, name) for name in taken}
    )
    if options.json:
        print_result(done.result)
    stream = sys.stderr if options.json else sys.stdout
    print_table(done.table, file=stream)
    print(f"\nteacher: {done.result['teacher_accuracy']:.2f} %\nreport: {done.out / 'report.html'}", file=stream)
    return 0
