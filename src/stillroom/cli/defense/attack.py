"""``stillroom defense attack``: parse, call the library, print what the clones are worth."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from stillroom.cli._job import Group, add_output
from stillroom.cli._output import print_result, show_table
from stillroom.cli._parser import add_config, new_parser, parse, plain
from stillroom.cli.defense._victim import add_data, arguments, data_of
from stillroom.defense.attack import attack_classifier
from stillroom.defense.attacks.target import Labels
from stillroom.training.fabric import Device

__all__ = ["build_parser", "run"]

DESCRIPTION = "Steal a classifier of your own, in this process or from a guarded endpoint on this machine."
KEY = "STILLROOM_API_KEY"
KINDS = {
    "model": str | None,
    "url": str | None,
    "attack": str,
    "queries": str,
    "budget": int,
    "labels": Labels,
    "colluders": int,
    "clone": str,
    "clone_epochs": int,
    "seed": int,
    "device": Device,
}


def build_parser() -> ArgumentParser:
    """Return the parser."""
    parser = new_parser("defense attack", DESCRIPTION)
    add_config(parser)
    add_data(parser)
    group = Group(parser, "attack", attack_classifier)
    for name, kind in KINDS.items():
        group.add(name, kind, {"model": "DIR", "url": "URL"}.get(name))
    group.group.description = f"with --url, the account's key is read from the environment variable {KEY}"
    add_output(Group(parser, "output", attack_classifier))
    return parser


def run(argv: Sequence[str]) -> int:
    """Attack, print the table and where the report lies."""
    options = parse(build_parser(), arguments(argv))
    chosen = {name: options[name] for name in (*KINDS, "out")}
    found = attack_classifier(
        data_of(options),
        **chosen,
        key=os.environ.get(KEY, ""),
        config={"data": plain(options.data), **chosen},
        show_progress=not options.quiet,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    if options.json:
        print_result(found.result)
    stream = sys.stderr if options.json else sys.stdout
    show_table(found.table, stream)
    print(f"\nreport: {found.out / 'report.html'}", file=stream)
    return 0
