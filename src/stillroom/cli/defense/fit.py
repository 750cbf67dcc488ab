"""``stillroom defense fit``: parse, call the library, print what the guard tells apart."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group, add_output
from stillroom.cli._output import print_result, say, show_table
from stillroom.cli._parser import add_config, new_parser, parse, plain
from stillroom.cli.defense._victim import add_data, add_model, arguments, data_of, victim_of
from stillroom.defense.fit import fit_guard
from stillroom.training.fabric import Device

__all__ = ["build_parser", "run"]

DESCRIPTION = "Fit a guard against model stealing for a classifier, and calibrate its threshold."
OPTIONS = (
    *(
        "window",
        "target_fpr",
        "concentration",
        "adjust",
        "shrinkage",
        "epochs",
        "seed",
        "device",
        "out",
        "resume",
        "overwrite",
    ),
)


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("defense fit", DESCRIPTION)
    add_config(parser)
    add_model(parser, "the classifier to guard: a run directory or NAME@FILE; a small one is trained when not given")
    add_data(parser)
    guard = Group(parser, "guard", fit_guard)
    guard.add("window", int)
    guard.add("target_fpr", float)
    guard.add("concentration", float | None)
    guard.yes_no("adjust")
    guard.add("shrinkage", float)
    guard.add("epochs", int)
    guard.add("seed", int)
    guard.add("device", Device)
    add_output(Group(parser, "output", fit_guard))
    return parser


def run(argv: Sequence[str]) -> int:
    """Fit the guard and print where it lies."""
    options = parse(build_parser(), arguments(argv))
    data = data_of(options)
    fitted = fit_guard(
        data,
        victim_of(options, data),
        **{name: getattr(options, name) for name in OPTIONS},
        config={
            "model": options.model,
            "model_normalisation": options.model_normalisation,
            "data": plain(options.data),
            **{name: getattr(options, name) for name in OPTIONS if name not in ("resume", "overwrite")},
        },
        show_progress=not options.quiet,
    )
    if options.json:
        print_result(fitted.result)
    stream = sys.stderr if options.json else sys.stdout
    show_table(fitted.table, stream)
    found = fitted.guard.calibration
    print(file=stream)
    say(
        f"threshold {found.threshold:.4g} for windows of {fitted.guard.window}: {100 * found.fpr:.2f} % of other "
        f"honest windows lie above it (95 % interval {100 * found.low:.2f} to {100 * found.high:.2f} %)",
        stream,
    )
    print(f"report: {fitted.out / 'report.html'}   next: stillroom defense serve --model {fitted.out}", file=stream)
    return 0
