"""The options the verbs of ``stillroom screening`` share: the data, and what counts as negative."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from jsonargparse import ArgumentParser, Namespace

from stillroom.cli._help import retitle
from stillroom.cli._job import Group
from stillroom.cli._output import print_result, say
from stillroom.cli._parser import expand, plain, read_configs
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.protocols import Decoys

__all__ = ["add_counting", "add_data", "arguments", "data_of", "tell_data"]

SHORT = {"--data": "--data.name", "--method": "--method.name"}
LISTS = ("--methods", "--settings", "--seeds", "--drug", "--target", "--data.columns")


def arguments(argv: Sequence[str], *, short: Mapping[str, str] = SHORT) -> list[str]:
    """Expand short forms and configuration files."""
    return read_configs(expand(argv, short, LISTS), short)


def add_data(parser: ArgumentParser) -> None:
    """Add the group of the data."""
    parser.add_class_arguments(ScreeningDataOptions, "data")
    retitle(parser, "data", "data", "short for --data.name NAME; or a YAML file with the options of the data")


def add_counting(group: Group) -> None:
    """Add what counts as negative, and whether identical drugs and targets stay together."""
    group.add("decoys", Decoys)
    group.add("ratio", int)
    group.yes_no("group_twins")


def data_of(options: Namespace) -> ScreeningDataOptions:
    """Return the options of the data as the library takes them."""
    return ScreeningDataOptions(**{**plain(options.data), "columns": tuple(options.data.columns)})


def tell_data(result: Mapping[str, Any], *, as_json: bool) -> TextIO:
    """Print the result if it is wanted as JSON, then the data's counts; return the stream that is for people."""
    if as_json:
        print_result(result)
    stream = sys.stderr if as_json else sys.stdout
    about = result["data"]
    counts = f"{about['drugs']:,} drugs, {about['targets']:,} targets, {about['interactions']:,} interactions"
    new = [f"new {kind}: {about[f'new_{kind}']:,}" for kind in ("drugs", "targets") if about[f"new_{kind}"]]
    say(f"{about['name']}: {'; '.join([counts, *new])}", stream)
    for note in about["notes"]:
        say(f"  {note}", stream)
    print(file=stream)
    return stream
