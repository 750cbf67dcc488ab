"""The page of a translation: the table of blocks, curves of training on, the translator's training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stillroom.distillation.translation.evaluate import LOSSES, RANDOM, STARTS, TRANSLATED, Comparison, Flops
from stillroom.reports.page import Figure, Page, Section, environment, write_page
from stillroom.reports.plots import ACCENT, INK, MUTED, svg, training_curves
from stillroom.reports.tables import Cell, Column, Table, paired_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

__all__ = ["after_table", "at_once_table", "headline", "write_report"]


def at_once_table(comparison: Comparison) -> Table:
    """Return one row a block: test accuracy over the validation networks, no training after insertion."""
    rows: list[list[Cell]] = []
    for name, values in comparison.at_once.items():
        mean, low, high = (100 * value.item() for value in (values.mean(), values.min(), values.max()))
        difference, half = _against_random(values, comparison)
        rows.append([name, mean, low, high, *((None, None) if name == RANDOM else (difference, half))])
    titles = ("mean [%]", "min [%]", "max [%]")
    columns = [Column("block"), *(Column(title, ".2f") for title in titles)]
    return Table([*columns, Column("against random [points]", "+.2f"), Column("± 95 %", ".2f")], rows)


def _against_random(values: Tensor, comparison: Comparison) -> tuple[float, float]:
    """Return the mean difference to the random block, network by network, and its half width, in points."""
    return paired_difference((100 * values).tolist(), (100 * comparison.at_once[RANDOM]).tolist())


def after_table(comparison: Comparison, steps: Sequence[int]) -> Table:
    """Return one row an arm: mean test accuracy after so many steps of training."""
    rows: list[list[Cell]] = [
        [start, loss, *(100 * values.mean(1)).tolist()] for (start, loss), values in comparison.after.items()
    ]
    numbers = [Column(f"{count} steps [%]", ".2f") for count in steps]
    return Table([Column("start"), Column("learns from"), *numbers], rows)


def headline(comparison: Comparison) -> str:
    """Return the outcome in a sentence."""
    translated, random = comparison.at_once[TRANSLATED], comparison.at_once[RANDOM]
    difference, half = _against_random(translated, comparison)
    better = int((translated > random).sum())
    margin = f" ± {half:.2f}" if math.isfinite(half) else ""
    return (
        f"Translated blocks reach {100 * translated.mean().item():.2f} % without any training, random ones "
        f"{100 * random.mean().item():.2f} % (difference {difference:+.2f}{margin} points; better in {better} of "
        f"{len(translated)} networks)."
    )


def _curves(comparison: Comparison, steps: Sequence[int]) -> str:
    """Draw mean accuracy over steps, one panel a loss, one line a start, the range over networks shaded."""
    colours = dict(zip(STARTS, (INK, MUTED, ACCENT), strict=True))

    def draw(figure: Drawing) -> None:
        for axes, loss in zip(figure.subplots(1, len(LOSSES), sharey=True), LOSSES, strict=True):
            axes.set_title(f"learns from {loss}")
            axes.set_xlabel("steps of SGD")
            axes.set_xscale("symlog", linthresh=1)
            axes.grid(axis="y")
            for start in STARTS:
                values = 100 * comparison.after[start, loss]
                axes.fill_between(steps, values.amin(1), values.amax(1), color=colours[start], alpha=0.12, linewidth=0)
                axes.plot(steps, values.mean(1), marker="o", markersize=4, color=colours[start], label=start)
        figure.axes[0].set_ylabel("top-1 [%]")
        figure.axes[-1].legend(fontsize=9)

    return svg(draw, 8.6, 3.6)


def write_report(
    path: Path,
    comparison: Comparison,
    flops: Flops,
    history: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    result: Mapping[str, Any],
    command: str,
) -> None:
    """Write the page."""
    steps = result["steps"]
    panels = {"loss on weights": {"training": [record["train_loss"] for record in history]}}
    if any("translated_accuracy" in record for record in history):
        measured = [record.get("translated_accuracy", math.nan) for record in history]
        panels["held-out top-1 [%]"] = {"translated": measured}
    million = 1e6
    cost = (
        f"A step of one network costs {flops.step / million:.1f} MFLOP when it learns from labels, "
        f"{flops.step_distillation / million:.1f} when it learns from the network with the large block; one "
        f"translation costs {flops.translation / million:.1f} MFLOP, as much as {flops.translation / flops.step:.2f} "
        f"steps. The pairs took {2 * result['steps_per_network']:,} steps for each of {result['pairs']:,} networks."
    )
    page = Page(
        kind="translation of weights",
        title=f"Small blocks written from large ones, {result['data']['name']}",
        headline=result["headline"],
        sections=[
            Section(
                title="Inserted as they are",
                text="Each block stands between the begin and the last of a network it was made for, which are frozen; "
                "test accuracy over all validation networks.",
                parts=[at_once_table(comparison)],
            ),
            Section(
                title="Trained on at equal compute",
                text="Only the block is trained, with the same images in the same order. " + cost,
                parts=[
                    Figure(_curves(comparison, steps), "Mean over the validation networks; shaded: the range."),
                    after_table(comparison, steps),
                ],
            ),
            Section(
                title="Training of the translator",
                parts=[Figure(training_curves(panels), "One value an epoch.")],
                note=_kept(result["kept"]),
            ),
        ],
        config=config,
        environment=environment(),
        command=command,
        notes=result["notes"],
    )
    write_page(path, page)


def _kept(kept: Mapping[str, Any]) -> str:
    if kept["held_out_accuracy"] is None:
        return f"The last epoch, {kept['epoch']}, is kept."
    return (
        f"Epoch {kept['epoch']} is kept: the best on held-out training images, {kept['held_out_accuracy']:.2f} %. The "
        "test images chose nothing; the networks that chose it are those the table is about."
    )
