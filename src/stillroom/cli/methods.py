"""``stillroom methods``: the cards, as a table, one in full, or JSON."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stillroom.cli._output import print_result
from stillroom.cli._parser import new_parser, parse
from stillroom.defense import methods as guarding
from stillroom.distillation.methods import METHODS, family_of, method_class
from stillroom.errors import MissingExtraError, unknown_name
from stillroom.files import plain
from stillroom.graphs import methods as graphs
from stillroom.hyperparameters import method_defaults
from stillroom.screening import methods as screening

__all__ = ["describe", "run"]

GRAPHS = {f"graphs:{name}": name for name in graphs.METHODS}  # some are called as those for images are
SCREENING = {f"screening:{name}": name for name in screening.METHODS}


def describe(name: str) -> dict[str, Any]:
    """Return a method's card, family and defaults, and what an offline one reads and weighs, as plain data.

    Methods for graphs are named ``graphs:NAME``, those for screening ``screening:NAME``.

    Raises:
        InputError: There is no such method.
        MissingExtraError: One for screening, without scikit-learn.
    """
    if name in guarding.METHODS:
        guard = guarding.method_class(name)
        # A secret, say, has no default.
        given = {
            option: value for option, value in method_defaults(guard).items() if value is not inspect.Parameter.empty
        }
        return {**asdict(guard.card), "family": guarding.kind_of(name), "defaults": plain(given)}
    if name in GRAPHS:
        students = graphs.method_class(GRAPHS[name])
        return {**asdict(students.card), "name": name, "family": "graphs", "defaults": method_defaults(students)}
    if name in SCREENING:
        screener = screening.method_class(SCREENING[name])
        return {**asdict(screener.card), "name": name, "family": "screening", "defaults": method_defaults(screener)}
    if name not in METHODS:
        raise unknown_name("method", name, [*METHODS, *guarding.METHODS, *GRAPHS, *SCREENING])
    method = method_class(name)
    about = {**asdict(method.card), "family": family_of(name), "defaults": method_defaults(method)}
    if about["family"] == "offline":
        about["reads"] = sorted(method.signals) or ["logits"]
        about["weights"] = {convention: asdict(weights) for convention, weights in method.presets.items()}
    return about


def run(argv: Sequence[str]) -> int:
    """List all methods, or show one with its papers, defaults and ledger."""
    parser = new_parser("methods", "List the methods with their papers, defaults and ledgers.", "[NAME] ")
    parser.add_argument("name", nargs="?", default=None, type=str, help="show this method in full")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    options = parse(parser, argv)
    names = [options.name] if options.name else [*METHODS, *guarding.METHODS, *GRAPHS, *_installed(SCREENING)]
    methods = [describe(name) for name in names]
    if options.json:
        print_result({"methods": methods})
    elif options.name:
        _show(methods[0])
    else:
        _list(methods)
    return 0


def _installed(names: Collection[str]) -> Collection[str]:
    """Return the names, or, where the extra their classes are made with is missing, none and say so."""
    try:
        describe(next(iter(names)))
    except MissingExtraError as error:
        print(f"{len(names)} methods for screening are left out: {error}", file=sys.stderr)
        return ()
    return names


def _list(methods: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "family", "year", "standing", "what it does"):
        table.add_column(column, no_wrap=column != "what it does")
    for method in methods:
        family = method["family"].replace("_", "-")
        table.add_row(method["name"], family, str(method["papers"][0]["year"]), method["standing"], method["summary"])
    console = Console()
    console.print(table)
    console.print("\nstillroom methods NAME shows one in full: papers, defaults, weights and ledger.", style="dim")


def _show(method: dict[str, Any]) -> None:
    console = Console(highlight=False)
    family = method["family"].replace("_", "-")
    console.print(f"[bold]{method['name']}[/bold]  ({family}, {method['standing']})\n{method['summary']}\n")
    for paper in method["papers"]:
        console.print(
            f"{paper['authors']}. {paper['title']}. {paper['venue']} {paper['year']}. {paper['identifier']}",
            markup=False,
        )
    console.print("\nhyperparameters" + ("" if method["family"] == "screening" else " (paper's defaults)"))
    for option, value in method["defaults"].items():
        prefix = "" if method["family"] in guarding.KINDS else "--method."
        console.print(f"  {prefix}{option} {value}", markup=False)
    if not method["defaults"]:
        console.print("  none")
    if method["family"] == "offline":
        console.print("\nobjective  ce · CE + kd · KD + method · own term")
        for convention, weights in method["weights"].items():
            console.print(
                f"  --weights {convention:<6} ce {weights['ce']:g}, kd {weights['kd']:g}, method {weights['method']:g}",
                markup=False,
            )
        console.print(f"reads      {', '.join(method['reads'])}")
    if method["ledger"]:
        console.print("\nledger: where the released code and the paper differ")
    for quirk in method["ledger"]:
        grid = Table.grid(padding=(0, 2, 0, 0))
        default = quirk["default"] + (f"; {quirk['option']}" if quirk["option"] else "")
        for word, text in (("paper", quirk["paper"]), ("code", quirk["code"]), ("default", default)):
            grid.add_row("", word, Text(text))
        console.print(grid, "")
