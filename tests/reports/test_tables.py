"""Tables align, names are no markup, and the intervals are Student's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from stillroom.errors import InputError
from stillroom.reports.tables import Column, Table, markdown, mean_ci, paired_difference, print_table, scaled, text

TABLE = Table(
    [Column("method"), Column("top-1 [%]", ".2f"), Column("parameters", ",d")],
    [["kd", 91.5, 1234567], ["[red]simkd|x[/red]", float("nan"), None], ["rld", "92.10 ± 0.30", 7]],
)


def test_text_aligns_numbers_to_the_right_and_words_to_the_left() -> None:
    lines = text(TABLE).splitlines()
    assert lines[0].split("  ")[0] == "method"
    ends = {len(line) for line in (lines[0], *lines[2:])}
    assert len(ends) == 1
    assert lines[2].startswith("kd ")
    assert lines[2].endswith("1,234,567")
    assert lines[3].startswith("[red]simkd|x[/red]")
    assert lines[3].endswith("–")


def test_a_wide_table_is_neither_wrapped_nor_cut() -> None:
    wide = Table([Column("x" * 300), Column("y" * 300)], [["a" * 300, "b" * 300]])
    assert len(text(wide).splitlines()) == 3


def test_tables_for_humans_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(TABLE, title="Result")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"Result\n\n{text(TABLE)}\n"


def test_markdown_escapes_its_own_separator() -> None:
    assert markdown(TABLE).splitlines() == [
        "| method | top-1 [%] | parameters |",
        "| --- | ---: | ---: |",
        "| kd | 91.50 | 1,234,567 |",
        "| [red]simkd\\|x[/red] | – | – |",
        "| rld | 92.10 ± 0.30 | 7 |",
    ]


def test_a_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        markdown(Table([Column("a"), Column("b")], [["only one"]]))


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_the_one_of_scipy(count: int) -> None:
    values = np.random.default_rng(count).normal(90, 2, count).tolist()
    mean, half_width = mean_ci(values)
    low, high = scipy.stats.t.interval(0.95, count - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high))


def test_the_paired_interval_is_the_one_of_the_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(91, 1, 6).tolist(), generator.normal(90, 1, 6).tolist()
    mean, half_width = paired_difference(a, b)
    interval = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (mean - half_width, mean + half_width) == pytest.approx((interval.low, interval.high))


def test_one_value_has_a_mean_and_no_interval() -> None:
    mean, half_width = mean_ci([90.0])
    assert mean == 90.0
    assert math.isnan(half_width)
    with pytest.raises(InputError, match="at least one value"):
        mean_ci([])


def test_pairs_of_different_seeds_are_refused() -> None:
    with pytest.raises(InputError, match="not 2 and 3; run the same seeds"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_scaling_keeps_the_smallest_count_above_one() -> None:
    assert scaled([0, 999]) == (1.0, "")
    assert scaled([1_000, 5_000_000]) == (1e3, "k")
    assert scaled([2_000_000]) == (1e6, "M")
    assert scaled([4e9, 9e12]) == (1e9, "G")
    assert scaled([]) == (1.0, "")
