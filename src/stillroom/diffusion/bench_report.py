"""The table, the curves and the page of a sampling benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.reports.page import Figure, Page, Section, write_page
from stillroom.reports.plots import ACCENT, INK, MUTED, svg
from stillroom.reports.tables import Column, Table
from stillroom.training.run import RunDirectory

__all__ = ["AUTO", "quality_table", "write_bench_report"]

AUTO = "auto"
MOST_CURVES = 6


def quality_table(records: Sequence[Mapping[str, Any]], nfe: Sequence[int], what: str) -> Table:
    """Return entries x evaluations, ordered by the geometric mean over the budgets an entry has."""
    entries: dict[str, dict[int, float]] = {}
    for record in records:
        if what in record:
            entries.setdefault(record["entry"], {})[record["nfe"]] = record[what]

    def rank(values: Mapping[int, float]) -> float:
        best = {budget: min(own[budget] for own in entries.values() if budget in own) for budget in values}
        return sum(math.log(max(values[b], 1e-12) / max(best[b], 1e-12)) for b in values) / len(values)

    ordered = sorted(entries.items(), key=lambda item: rank(item[1]))
    columns = [Column("solver · schedule"), *(Column(f"{budget} evaluations", ".4g") for budget in nfe)]
    return Table(columns, [[label, *(values.get(budget) for budget in nfe)] for label, values in ordered])


def _curves(records: Sequence[Mapping[str, Any]], nfe: Sequence[int], what: str, title: str) -> str:
    entries: dict[str, list[tuple[int, float]]] = {}
    for record in sorted(records, key=lambda record: int(record["nfe"])):
        if what in record:
            entries.setdefault(record["entry"], []).append((record["nfe"], record[what]))
    last = {label: points[-1][1] for label, points in entries.items()}
    shown = sorted(entries, key=lambda label: last[label])[:6]
    if AUTO in entries and AUTO not in shown:
        shown = [*shown[:5], AUTO]
    looks = ((INK, "-"), (MUTED, "--"), (MUTED, ":"), (INK, "-."), (INK, ":"), (MUTED, "-"))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.set_yscale("log")
        axes.set_xlabel("evaluations")
        axes.set_ylabel(title)
        axes.set_xticks(sorted(nfe))
        axes.grid(axis="y")
        for number, label in enumerate(shown):
            colour, dash = (ACCENT, "-") if label == AUTO else looks[number % len(looks)]
            axes.plot(
                *zip(*entries[label], strict=True), color=colour, linestyle=dash, marker="o", markersize=4, label=label
            )
        axes.legend(fontsize=9)

    return svg(draw, 7.2, 4.2)


def write_bench_report(
    run: RunDirectory, model: str, result: Mapping[str, Any], nfe: Sequence[int], config: Mapping[str, Any]
) -> None:
    """Write ``report.html`` of a benchmark's result."""
    records = result["records"]
    best = [(budget, record) for budget, record in result["best"].items() if record is not None]
    named = "; ".join(f"{record['entry']} {record['rmse']:.3g} with {budget} evaluations" for budget, record in best)
    curves = Figure(_curves(records, nfe, "rmse", "RMSE"), "The entries that are best with most evaluations, and auto.")
    sections = [
        Section(
            title="Distance to the reference",
            text=f"Root mean squared difference to {result['reference']}, from the same noise. Lower is better.",
            parts=[curves, quality_table(records, nfe, "rmse")],
        )
    ]
    if any("frechet" in record for record in records):
        figure = Figure(_curves(records, nfe, "frechet", "Fréchet distance"), "The best with most evaluations.")
        text = "Fréchet distance between real and sampled images in the features of the given network. Lower is better."
        table = quality_table(records, nfe, "frechet")
        sections.append(Section(title="Distance of distributions", text=text, parts=[figure, table]))
    levels = Table(
        [Column("evaluations"), Column("entry"), Column("solver"), Column("noise levels")],
        [
            [str(budget), record["entry"], record["solver"], ", ".join(f"{sigma:.4g}" for sigma in record["sigmas"])]
            for budget, record in best
        ],
    )
    sections.append(Section(title="The best of each budget", parts=[levels]))
    page = Page(
        kind="sampling benchmark",
        title=f"Solvers and schedules on {model}",
        headline=f"Lowest RMSE over {result['count']} samples: {named}.",
        sections=sections,
        config=config,
        environment=result["environment"],
        command=f"stillroom diffusion bench --config {run.config} --out NEW_DIRECTORY",
    )
    write_page(run.report, page)
