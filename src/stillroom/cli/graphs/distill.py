"""``stillroom graphs distill``: parse, call the library, print the table."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from stillroom.cli._help import retitle
from stillroom.cli._job import Group, add_output
from stillroom.cli._parser import add_config, new_parser, parse, peek, plain
from stillroom.cli.graphs._options import add_groups, arguments, built, show
from stillroom.graphs.distill import distill
from stillroom.graphs.methods import METHODS, method_class
from stillroom.graphs.training import Init
from stillroom.hyperparameters import method_defaults
from stillroom.training.fabric import Device, Precision

__all__ = ["build_parser", "run"]

DESCRIPTION = "Train graph neural networks that teach each other, beside the same ones on the labels alone."
PLAIN = (
    *("students", "init", "baseline", "out", "seed", "device", "precision", "eval_every", "tensorboard"),
    *("resume", "overwrite"),
)


def build_parser(argv: Sequence[str]) -> tuple[ArgumentParser, list[str]]:
    """Return the parser with the options of the chosen method, and the arguments left to parse."""
    rest = arguments(argv)
    name = peek(rest, "--method.name") or "oad"
    parser = new_parser("graphs distill", DESCRIPTION)
    add_config(parser)
    text = f"one of {', '.join(METHODS)}; --method NAME for short"
    parser.add_argument_group("method").add_argument(
        "--method.name", type=str, metavar="NAME", default="oad", help=text
    )
    parser.add_class_arguments(method_class(name), "method")
    if method_defaults(method_class(name)):
        title = f"options of {name} (--method NAME --help shows another's)"
        retitle(parser, "method", title, "short for --method.name NAME")
    group = Group(parser, "students", distill)
    group.add("students", int, default=4)
    group.add("init", Init)
    add_groups(parser)
    training = Group(parser, "training", distill)
    training.yes_no("baseline")
    training.add("seed", int)
    training.add("device", Device)
    training.add("precision", Precision)
    training.add("eval_every", int)
    training.yes_no("tensorboard")
    add_output(Group(parser, "output", distill))
    return parser, rest


def run(argv: Sequence[str]) -> int:
    """Train, print the comparison and where the report lies."""
    parser, rest = build_parser(argv)
    options = parse(parser, rest)
    own = {name: value for name, value in plain(options.method).items() if name != "name"}
    done = distill(
        method=method_class(options.method.name)(**own),
        **built(options),
        **{name: getattr(options, name) for name in PLAIN},
        show_progress=not options.quiet,
    )
    stream = show(done, as_json=options.json)
    print(f"student: {done.out / 'model.safetensors'}   report: {done.out / 'report.html'}", file=stream)
    return 0
