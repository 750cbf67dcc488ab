"""Tables as aligned text and as Markdown, and the statistics that stand in them."""

from __future__ import annotations

import io
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from stillroom.errors import InputError, MissingExtraError

__all__ = [
    "Cell",
    "Column",
    "Table",
    "interval_text",
    "markdown",
    "mean_ci",
    "paired_difference",
    "print_table",
    "scaled",
    "text",
]

Cell = str | int | float | None

MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A column: its heading with the unit, and the format of its numbers (empty for a column of words)."""

    title: str
    spec: str = ""

    def show(self, cell: Cell) -> str:
        """Return the cell as it is printed; nothing and NaN become a dash."""
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return MISSING
        return cell if isinstance(cell, str) else format(cell, self.spec)


@dataclass(frozen=True)
class Table:
    """Rows under columns; each row is as long as the columns.

    Example:
        >>> table = Table([Column("method"), Column("top-1 [%]", ".2f")], [["kd", 91.5], ["simkd", None]])
        >>> print(markdown(table))
        | method | top-1 [%] |
        | --- | ---: |
        | kd | 91.50 |
        | simkd | – |
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def shown(self) -> list[list[str]]:
        """Return all cells as they are printed."""
        return [[column.show(cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows]


def text(table: Table) -> str:
    """Return the table aligned for a terminal, without colours, as wide as it needs to be."""
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    drawn = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in table.columns:
        drawn.add_column(rich.text.Text(column.title), justify="right" if column.spec else "left", no_wrap=True)
    for row in table.shown():
        drawn.add_row(*(rich.text.Text(cell) for cell in row))  # Text: names are no markup
    out = io.StringIO()
    rich.console.Console(file=out, width=10_000, no_color=True, legacy_windows=False).print(drawn)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def print_table(table: Table, *, title: str = "", file: TextIO | None = None) -> None:
    """Print the table for a human, on standard error unless told otherwise."""
    print(f"{title}\n\n{text(table)}" if title else text(table), file=file or sys.stderr)


def markdown(table: Table) -> str:
    """Return the table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ["---:" if column.spec else "---" for column in table.columns]
    return "\n".join(line(row) for row in ([column.title for column in table.columns], rule, *table.shown()))


def scaled(values: Sequence[float]) -> tuple[float, str]:
    """Return a divisor and its prefix that keep the smallest of some positive counts above 1.

    Example:
        >>> scaled([78_042, 7_433_860])
        (1000.0, 'k')
    """
    smallest = min((value for value in values if value > 0), default=0.0)
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if smallest >= factor:
            return factor, prefix
    return 1.0, ""


def mean_ci(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Return the mean and the half width of its confidence interval by Student's t distribution.

    ``half width = t_{(1 + level) / 2, n - 1} · s / √n`` with the sample standard deviation ``s``; NaN for one value.

    Raises:
        InputError: There is no value.

    Example:
        >>> mean, half_width = mean_ci([90.0, 91.0, 92.0])
        >>> f"{mean:.2f} ± {half_width:.2f}"
        '91.00 ± 2.48'
    """
    if not values:
        raise InputError("a mean needs at least one value")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, math.nan
    try:
        from scipy.stats import t
    except ImportError as error:
        raise MissingExtraError("scipy", "vision") from error
    quantile = float(t.ppf((1 + level) / 2, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))


def interval_text(mean: float, half_width: float, *, digits: int = 2, sign: str = "") -> str:
    """Return a mean with its half width as it stands in tables; the mean alone where there is no half width.

    Example:
        >>> interval_text(91.0, 2.484), interval_text(0.5, float("nan"), digits=1, sign="+")
        ('91.00 ± 2.48', '+0.5')
    """
    spread = "" if math.isnan(half_width) else f" ± {half_width:.{digits}f}"
    return f"{mean:{sign}.{digits}f}{spread}"


def paired_difference(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> tuple[float, float]:
    """Return the mean of ``a - b``, pair by pair (seed by seed), and its confidence half width, see :func:`mean_ci`.

    Raises:
        InputError: The two are of different length.

    Example:
        >>> paired_difference([3.0, 4.0], [1.0, 2.0])
        (2.0, 0.0)
    """
    if len(a) != len(b):
        raise InputError(f"pairs need as many values on both sides, not {len(a)} and {len(b)}; run the same seeds")
    return mean_ci([left - right for left, right in zip(a, b, strict=True)], level=level)
