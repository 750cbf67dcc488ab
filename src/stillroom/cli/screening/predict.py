"""``stillroom screening predict``: parse, call the library, print the ranking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from stillroom.cli._help import retitle
from stillroom.cli._job import Group
from stillroom.cli._output import say, show_table
from stillroom.cli._parser import add_config, new_parser, parse, peek, plain
from stillroom.cli.screening._options import add_data, arguments, data_of, tell_data
from stillroom.hyperparameters import method_defaults
from stillroom.screening.methods import METHODS, method_class
from stillroom.screening.predict import predict
from stillroom.screening.report import SETTINGS, SUPPORT, check_table

__all__ = ["build_parser", "run"]

DESCRIPTION = "Rank the drug-target pairs not known to interact, with the known interactions that support each."
PLAIN = ("top", "drug", "target", "check", "confirmed", "seed", "out", "overwrite")


def build_parser(argv: Sequence[str]) -> tuple[ArgumentParser, list[str]]:
    """Return the parser with the options of the chosen method, and the arguments left to parse."""
    rest = arguments(argv)
    name = peek(rest, "--method.name") or "blm_nii"
    parser = new_parser("screening predict", DESCRIPTION)
    add_config(parser)
    text = f"one of {', '.join(METHODS)}; --method NAME for short"
    parser.add_argument_group("method").add_argument(
        "--method.name", type=str, metavar="NAME", default="blm_nii", help=text
    )
    kind = method_class(name)
    parser.add_class_arguments(kind, "method", skip={"drug_similarity", "target_similarity", "random_state"})
    if method_defaults(kind):
        title = f"options of {name} (--method NAME --help shows another's)"
        retitle(parser, "method", title, "short for --method.name NAME")
    ranking = Group(parser, "ranking", predict)
    ranking.add("top", int)
    ranking.add("drug", list[str])
    ranking.add("target", list[str])
    ranking.yes_no("check")
    ranking.add("confirmed", Path | None, "FILE")
    ranking.add("seed", int)
    add_data(parser)
    output = Group(parser, "output", predict)
    output.add("out", str, "DIR")
    output.flag("overwrite")
    output.flag("json", "print the result as one JSON object on standard output, and all else on standard error")
    output.flag("quiet", "show no progress")
    return parser, rest


def run(argv: Sequence[str]) -> int:
    """Rank, print the first pairs, the check, and where the report lies."""
    parser, rest = build_parser(argv)
    options = parse(parser, rest)
    own = {name: value for name, value in plain(options.method).items() if name != "name"}
    done = predict(
        method=options.method.name,
        data=data_of(options),
        method_options=own,
        **{name: getattr(options, name) for name in PLAIN},
        show_progress=not options.quiet,
    )
    stream = tell_data(done.result, as_json=options.json)
    for setting, table in done.tables.items():
        say(f"{setting}: {SETTINGS[setting]}", stream)
        print(file=stream)
        show_table(table, stream)
        print(file=stream)
    for sentence in (*done.result["notes"], SUPPORT):
        say(sentence, stream)
    print(file=stream)
    if done.result["check"]:
        say("The same method cross-validated on the same data:", stream)
        show_table(check_table(done.result["check"]), stream)
        print(file=stream)
    print(f"ranking: {done.out / 'predictions.csv'}   report: {done.out / 'report.html'}", file=stream)
    return 0
