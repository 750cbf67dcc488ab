"""``stillroom defense bench``: parse, call the library, print its tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group, add_output
from stillroom.cli._output import print_result, show_table
from stillroom.cli._parser import add_config, new_parser, parse, plain
from stillroom.cli.defense._victim import add_data, add_model, arguments, data_of, victim_of
from stillroom.defense.bench import bench
from stillroom.training.fabric import Device

__all__ = ["build_parser", "run"]

DESCRIPTION = "Compare defences against model stealing: detection, honest users, clones. Asks only models of your own."
LISTS = ("--defences", "--attacks", "--queries", "--labels", "--seeds", "--shifted")
KINDS = {
    "defences": list[str],
    "attacks": list[str],
    "queries": list[str],
    "labels": list[str],
    "seeds": list[int],
    "budget": int,
    "clone": str,
    "clone_epochs": int,
    "window": int,
    "target_fpr": float,
    "accounts": int,
    "asked": int,
    "shifted": list[str],
    "peer_epochs": int,
    "epochs": int,
    "device": Device,
}


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("defense bench", DESCRIPTION)
    add_config(parser)
    add_model(parser, "the victim: a run directory or NAME@FILE; a small one is trained when not given")
    add_data(parser)
    group = Group(parser, "bench", bench)
    for name, kind in KINDS.items():
        group.add(name, kind)
    add_output(Group(parser, "output", bench))
    return parser


def run(argv: Sequence[str]) -> int:
    """Measure, print the tables and where the report lies."""
    options = parse(build_parser(), arguments(argv, LISTS))
    data = data_of(options)
    chosen = {name: options[name] for name in (*KINDS, "out")}
    found = bench(
        data,
        victim_of(options, data),
        **chosen,
        config={
            "model": options.model,
            "model_normalisation": options.model_normalisation,
            "data": plain(options.data),
            **chosen,
        },
        show_progress=not options.quiet,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    if options.json:
        print_result(found.result)
    stream = sys.stderr if options.json else sys.stdout
    for title, table in found.tables.items():
        if table.rows:
            print(f"{title}\n", file=stream)
            show_table(table, stream)
            print(file=stream)
    print(f"report: {found.out / 'report.html'}", file=stream)
    return 0
