"""The tables, curves and pages of graph students and of their benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.cards import Card
from stillroom.graphs.training import TrainedGroup
from stillroom.reports.page import Figure, Page, Section
from stillroom.reports.plots import seed_strip, training_curves
from stillroom.reports.tables import Cell, Column, Table, interval_text, mean_ci, paired_difference

__all__ = ["LEGEND", "bench_page", "bench_table", "data_table", "distill_page", "group_table"]

BASELINE = "independent"
LEGEND = (
    "Accuracy (micro-F1 where nodes have several labels) on the test nodes: the mean of a group's students and their "
    "spread, a standard deviation; the student chosen on the validation nodes; the ensemble, which answers with the "
    "mean of all logits."
)
WORDS = {"accuracy": "accuracy", "micro_f1": "micro-F1"}


def group_table(groups: Mapping[str, TrainedGroup], measure: str) -> Table:
    """Set groups side by side: mean of the students, how far they spread, the one that is chosen, the ensemble."""
    what = WORDS[measure]
    columns = [
        Column("students"),
        Column(f"test {what} [%]", ".2f"),
        Column("spread [points]", ".2f"),
        Column("chosen [%]", ".2f"),
        Column("ensemble [%]", ".2f"),
        Column("validation [%]", ".2f"),
    ]
    rows: list[list[Cell]] = [
        [name, group.mean, group.spread, group.test[group.chosen], group.ensemble, sum(group.val) / len(group.val)]
        for name, group in groups.items()
    ]
    return Table(columns, rows)


def data_table(about: Mapping[str, Any]) -> Table:
    """Return the counts of a data set as a table."""
    shown = ("graphs", "nodes", "edges", "self_loops", "isolated_nodes", "features", "classes")
    rows: list[list[Cell]] = [[name.replace("_", " "), int(about[name])] for name in shown]
    rows += [[f"{split} nodes", int(about[f"{split}_nodes"])] for split in ("train", "val", "test")]
    if about.get("homophily") is not None:
        rows.append(["edges within a class [%]", round(100 * about["homophily"])])
    return Table([Column("what"), Column("count", ",d")], rows)


def distill_page(
    card: Card, groups: Mapping[str, TrainedGroup], result: Mapping[str, Any], config: Mapping[str, Any], command: str
) -> Page:
    """Return the page of a training."""
    measure, what = result["measure"], WORDS[result["measure"]]
    group = groups[card.name]
    headline = (
        f"The {len(group.test)} students reach {group.mean:.2f} % test {what} on average, the one chosen on the "
        f"validation nodes {group.test[group.chosen]:.2f} %, their ensemble {group.ensemble:.2f} %."
    )
    if "alone" in groups:
        points = group.mean - groups["alone"].mean
        if abs(points) < 0.005:
            headline += " On the labels alone the same students do as well."
        else:
            side = "above" if points > 0 else "below"
            headline += f" The mean is {abs(points):.2f} points {side} that of the same students on the labels alone."
    sections = [
        Section(
            title="Students",
            text=f"{LEGEND} Every student counts as it was at its best epoch on the validation nodes.",
            parts=[group_table(groups, measure)],
        ),
        Section(title="Each student", parts=[_each_table(groups, what)]),
        Section(
            title="Learning",
            text="Means over the students.",
            parts=[Figure(_learning(groups, measure))],
        ),
        Section(
            title="Layers",
            text="Structure: how far two students' local structures are apart (divergence of the softmax over each "
            "node's neighbours, in nats). Similarity: the mean kernel of two neighbours at scale 100; close to 1 the "
            "structure is uniform whatever was learnt. Dirichlet energy (as a share of the squared norm) and mean "
            "average distance (of neighbours, by cosine) are 0 where a layer has smoothed all neighbours out.",
            parts=[_layers_table(groups)],
        ),
        Section(title="Data", parts=[data_table(result["data"])], note="; ".join(result["data"]["notes"])),
    ]
    return Page(
        kind="graph students",
        title=f"{len(group.test)} students of {result['data']['name']} under {card.name}",
        headline=headline,
        sections=sections,
        config=config,
        environment=result["environment"],
        command=command,
        notes=result["notes"],
    )


def _each_table(groups: Mapping[str, TrainedGroup], what: str) -> Table:
    columns = [
        Column("student"),
        Column("best epoch", "d"),
        Column("validation [%]", ".2f"),
        Column(f"test {what} [%]", ".2f"),
    ]
    rows: list[list[Cell]] = []
    for name, group in groups.items():
        for m, (epoch, val, test) in enumerate(zip(group.best_epochs, group.val, group.test, strict=True)):
            chosen = ", chosen" if m == group.chosen else ""
            rows.append([f"{name} {m + 1}{chosen}", epoch, val, test])
    return Table(columns, rows)


def _learning(groups: Mapping[str, TrainedGroup], measure: str) -> str:
    def curve(group: TrainedGroup, key: str) -> list[float]:
        return [float(record.get(key, math.nan)) for record in group.history]

    panels = {
        f"validation {WORDS[measure]} [%]": f"val_{measure}",
        f"test {WORDS[measure]} [%]": f"test_{measure}",
        "validation loss": "val_loss",
    }
    return training_curves(
        {title: {name: curve(group, key) for name, group in groups.items()} for title, key in panels.items()}
    )


def _layers_table(groups: Mapping[str, TrainedGroup]) -> Table:
    columns = [
        Column("students, layer"),
        Column("structure", ".3g"),
        Column("similarity", ".3f"),
        Column("Dirichlet energy", ".4f"),
        Column("mean average distance", ".4f"),
    ]
    rows: list[list[Cell]] = []
    for name, group in groups.items():
        figures = zip(
            group.layers.structure, group.layers.similarity, group.layers.dirichlet, group.layers.mad, strict=True
        )
        rows += [[f"{name}, {layer}", *values] for layer, values in enumerate(figures, 1)]
    return Table(columns, rows)


def bench_table(cells: Mapping[str, Sequence[Mapping[str, Any]]], measure: str) -> Table:
    """Give each method's mean over seeds with its 95 % confidence interval, and its paired difference to the baseline.

    Args:
        cells: Method -> what was measured for each seed, the same seeds in the same order for all.
        measure: accuracy or micro_f1.
    """
    paired = BASELINE in cells
    columns = [
        Column("method"),
        Column(f"test {WORDS[measure]} [%]", ".2f"),
        *([Column(f"vs {BASELINE} [points]", "+.2f")] if paired else []),
        Column("chosen [%]", ".2f"),
        Column("ensemble [%]", ".2f"),
        Column("spread [points]", ".2f"),
    ]
    rows: list[list[Cell]] = []
    for name, each in cells.items():
        means = [float(cell["test_mean"]) for cell in each]
        row: list[Cell] = [name, interval_text(*mean_ci(means))]
        if paired:
            base = [float(cell["test_mean"]) for cell in cells[BASELINE]]
            row.append(None if name == BASELINE else interval_text(*paired_difference(means, base), sign="+"))
        row += [
            interval_text(*mean_ci([float(cell[f"test_{key}"]) for cell in each])) for key in ("chosen", "ensemble")
        ]
        row.append(sum(float(cell["test_spread"]) for cell in each) / len(each))
        rows.append(row)
    return Table(columns, rows)


def bench_page(
    cells: Mapping[str, Sequence[Mapping[str, Any]]], result: Mapping[str, Any], config: Mapping[str, Any], command: str
) -> Page:
    """Return the page of a benchmark."""
    measure, what = result["measure"], WORDS[result["measure"]]
    means = {name: [float(cell["test_mean"]) for cell in each] for name, each in cells.items()}
    average = {name: sum(values) / len(values) for name, values in means.items()}
    best = max(average, key=average.__getitem__)
    headline = f"{best} is best on average, with {average[best]:.2f} % test {what}"
    if BASELINE in average and best != BASELINE:
        headline += f", {average[best] - average[BASELINE]:.2f} points above {BASELINE}"
    sections = [
        Section(
            title="Methods",
            text=f"{LEGEND} Means over the seeds with 95 % confidence intervals; differences are paired seed by seed. "
            "Every student counts as it was at its best epoch on the validation nodes.",
            parts=[
                bench_table(cells, measure),
                Figure(seed_strip(means, unit=f"test {what}, mean of students [%]"), "Each dot is a seed."),
            ],
        ),
        Section(
            title="Layers",
            text="The last hidden layer, means over seeds; see the page of a single training for what they are.",
            parts=[_last_layers(cells)],
        ),
        Section(title="Data", parts=[data_table(result["data"])], note="; ".join(result["data"]["notes"])),
    ]
    seeds = len(result["seeds"])
    return Page(
        kind="graph benchmark",
        title=f"{len(cells)} methods on {result['data']['name']}, {seeds} seed{'s' if seeds > 1 else ''}",
        headline=headline + ".",
        sections=sections,
        config=config,
        environment=result["environment"],
        command=command,
        notes=result["notes"],
    )


def _last_layers(cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    columns = [
        Column("method"),
        Column("structure", ".3g"),
        Column("similarity", ".3f"),
        Column("Dirichlet energy", ".4f"),
        Column("mean average distance", ".4f"),
    ]
    rows: list[list[Cell]] = []
    for name, each in cells.items():
        row: list[Cell] = [name]
        for figure in ("structure", "similarity", "dirichlet", "mad"):
            # A kept cell of a single student says null where nothing can be compared.
            last = [math.nan if (value := cell["layers"][figure][-1]) is None else float(value) for cell in each]
            row.append(sum(last) / len(last))
        rows.append(row)
    return Table(columns, rows)
