"""Plots as inline SVG that takes its colours from the page, so that it is readable in the light and in the dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import MissingExtraError
from stillroom.reports.tables import mean_ci

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "ACCENT",
    "INK",
    "LINE",
    "MUTED",
    "Point",
    "accuracy_vs_latency",
    "class_change_bars",
    "lost_heat_map",
    "seed_strip",
    "svg",
    "training_curves",
]

# Stand-ins that are drawn with and then replaced by the page's own colours.
INK, MUTED, LINE, ACCENT = "#010101", "#020202", "#030303", "#040404"
PAGE_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)", ACCENT: "var(--accent)"}

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's typeface
    "svg.hashsalt": "stillroom",  # the same plot gives the same bytes
    "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}

LABEL_HEIGHT = 14.0  # points between two labels that would touch


class Point(NamedTuple):
    """A network in the plane of cost and quality."""

    name: str
    accuracy: float  # 0 to 1
    latency_ms: float


def accuracy_vs_latency(points: Sequence[Point]) -> str:
    """Scatter accuracy over latency; the last point is emphasised."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.grid(axis="y")
        axes.set_xlabel("latency, one image [ms]")
        axes.set_ylabel("top-1 [%]")
        for number, point in enumerate(points):
            last = number == len(points) - 1
            axes.plot(point.latency_ms, 100 * point.accuracy, "o", color=ACCENT if last else INK, markersize=8)
        axes.set_xlim(0, 1.35 * max(point.latency_ms for point in points))
        axes.margins(y=0.2)
        _label(axes, points)

    return svg(draw, 6.4, 3.4)


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Write each name beside its point, moved up where two would touch."""
    to_points = 72 / axes.figure.dpi
    floor = -math.inf
    places = axes.transData.transform([(point.latency_ms, 100 * point.accuracy) for point in points]) * to_points
    for number in sorted(range(len(points)), key=lambda n: places[n][1]):
        height = max(places[number][1], floor)
        floor = height + LABEL_HEIGHT
        axes.annotate(
            points[number].name,
            (points[number].latency_ms, 100 * points[number].accuracy),
            xytext=(9, height - places[number][1]),
            textcoords="offset points",
            va="center",
            color=ACCENT if number == len(points) - 1 else INK,
        )


def training_curves(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Draw one panel per quantity with one line per series over the epochs (from 1); the last series is emphasised.

    Args:
        panels: Title with unit -> name of the series -> one value per epoch, NaN where nothing was measured.
    """
    looks = ((INK, "-"), (MUTED, "--"), (MUTED, ":"), (INK, "-."))

    def draw(figure: Figure) -> None:
        for axes, (title, series) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.grid(axis="y")
            axes.xaxis.get_major_locator().set_params(integer=True)
            for number, (name, values) in enumerate(series.items()):
                colour, dash = (ACCENT, "-") if number == len(series) - 1 else looks[number % len(looks)]
                # A line breaks off at NaN: epochs without a measurement are left out instead.
                points = [(epoch, value) for epoch, value in enumerate(values, 1) if math.isfinite(value)]
                marker = "o" if len(points) < len(values) or len(points) == 1 else ""
                epochs, measured = [epoch for epoch, _ in points], [value for _, value in points]
                axes.plot(epochs, measured, color=colour, linestyle=dash, marker=marker, markersize=4, label=name)
            axes.legend(fontsize=9)

    return svg(draw, max(4.8, 4.3 * len(panels)), 3.2)


def class_change_bars(names: Sequence[str], changes: Sequence[float]) -> str:
    """Draw the change of accuracy per class, in points, from top to bottom; losses are emphasised."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        rows = range(len(names))
        axes.barh(rows, changes, color=[ACCENT if change < 0 else MUTED for change in changes], height=0.62)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(rows, names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel("change of accuracy, student − teacher [points]")

    return svg(draw, 6.4, 0.9 + 0.27 * len(names))


def lost_heat_map(names: Sequence[str], lost: NDArray[np.int64]) -> str:
    """Draw the samples the teacher got right and the student not, by true class (rows) and answer (columns)."""
    from_page = f"{ACCENT}00", f"{ACCENT}ff"

    def draw(figure: Figure) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        axes = figure.subplots()
        # Only the opacity varies: the colour itself is the page's.
        shades = LinearSegmentedColormap.from_list("lost", from_page)
        most = max(int(lost.max()), 1)
        axes.pcolormesh(lost, cmap=shades, vmin=0, vmax=1.35 * most, edgecolors=LINE, linewidth=0.6)
        for row, column in np.argwhere(lost > 0):
            count = int(lost[row, column])
            axes.text(column + 0.5, row + 0.5, str(count), ha="center", va="center", fontsize=9)
        middles = np.arange(len(names)) + 0.5
        axes.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(middles, names)
        axes.tick_params(length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel("student's answer")
        axes.set_ylabel("true class")

    side = 1.6 + 0.36 * len(names)
    return svg(draw, side + 0.4, side)


def seed_strip(groups: Mapping[str, Sequence[float]], *, unit: str = "top-1 [%]") -> str:
    """Draw every seed's value as a dot, with mean and 95 % confidence interval, one row per method."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, values in enumerate(groups.values()):
            mean, half_width = mean_ci(values)
            if math.isfinite(half_width):
                axes.barh(row, 2 * half_width, left=mean - half_width, height=0.36, color=ACCENT, alpha=0.25)
            axes.plot(mean, row, "|", color=ACCENT, markersize=15, markeredgewidth=2.4)
            axes.plot(values, [row] * len(values), "o", color=INK, markersize=5, alpha=0.8, markeredgewidth=0)
        axes.set_yticks(range(len(groups)), list(groups))
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.use_sticky_edges = False  # bands keep a margin too
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(unit)

    return svg(draw, 6.8, 0.9 + 0.34 * len(groups))


def _plain_powers(figure: Figure) -> None:
    """Label logarithmic axes with plain numbers; powers of ten would need the mathematical text that is off."""
    from matplotlib.ticker import LogFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() in ("log", "symlog"):
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(LogFormatter(minor_thresholds=(1.0, 0.4)))


def svg(draw: Callable[[Figure], None], width: float, height: float) -> str:
    """Draw on a figure of so many inches and return it as an ``<svg>`` element for a page."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "vision") from error
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        draw(figure)
        _plain_powers(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r' xmlns(:\w+)?="[^"]*"', "", drawn, count=2).replace("xlink:href", "href")
    for stand_in, colour in PAGE_COLOURS.items():
        drawn = drawn.replace(stand_in, colour)
    return drawn
