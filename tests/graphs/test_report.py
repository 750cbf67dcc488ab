"""Tables and pages of graph students: what they say is what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn

from stillroom.cards import Card
from stillroom.graphs import report
from stillroom.graphs.methods import method_class
from stillroom.graphs.report import bench_page, bench_table, data_table, distill_page, group_table
from stillroom.graphs.training import LayerFigures, TrainedGroup
from stillroom.reports.page import write_page

ABOUT = {
    **{"graphs": 1, "nodes": 90, "edges": 360, "self_loops": 90, "isolated_nodes": 2, "features": 5, "classes": 3},
    **{"train_nodes": 18, "val_nodes": 24, "test_nodes": 30, "homophily": 0.8, "notes": ["2 isolated nodes"]},
    **{"name": "toy", "multilabel": False},
}
CARD: Card = method_class("oad").card


def group(test: list[float], val: list[float], *, structure: float = 0.25, measure: str = "accuracy") -> TrainedGroup:
    history: list[dict[str, Any]] = [{"epoch": 1, "train_loss": 3.0, "train_labels": 3.0}]
    history.append(history[0] | {"epoch": 2, f"val_{measure}": 51.0, f"test_{measure}": 52.0, "val_loss": 1.0})
    layers = LayerFigures([structure, 0.125], [0.5, 0.75], [0.1, 0.2], [0.3, 0.4])
    students: list[nn.Module] = [nn.Identity() for _ in test]
    return TrainedGroup(students, history, val, test, 70.0, [2] * len(test), layers, 1.5)


def page_text(groups: dict[str, TrainedGroup], tmp_path: Path, *, measure: str = "accuracy") -> str:
    result = {"measure": measure, "data": ABOUT, "environment": {}, "notes": []}
    write_page(tmp_path / "report.html", distill_page(CARD, groups, result, {"seed": 0}, "stillroom graphs distill"))
    return (tmp_path / "report.html").read_text()


def test_a_group_has_a_mean_a_spread_and_a_student_chosen_on_validation() -> None:
    found = group([60.0, 70.0, 65.0], [50.0, 55.0, 55.0])
    assert found.chosen == 1  # the first of equals
    assert found.mean == 65
    assert found.spread == pytest.approx(5)
    record = found.record()
    assert (record["test_chosen"], record["test_ensemble"]) == (70, 70)
    (row,) = group_table({"oad": found}, "accuracy").rows
    assert row == ["oad", 65, pytest.approx(5), 70, 70, pytest.approx(160 / 3)]


@pytest.mark.parametrize(
    ("alone", "said"),
    [
        ([60.0, 64.0], "The mean is 3.00 points above that of the same students on the labels alone."),
        ([66.0, 68.0], "The mean is 2.00 points below that of the same students on the labels alone."),
        ([64.0, 66.0], "On the labels alone the same students do as well."),
    ],
)
def test_the_headline_says_how_the_group_did_and_against_what(tmp_path: Path, alone: list[float], said: str) -> None:
    groups = {"alone": group(alone, [50.0, 51.0]), "oad": group([60.0, 70.0], [50.0, 55.0])}
    text = page_text(groups, tmp_path)
    assert "The 2 students reach 65.00 % test accuracy on average" in text
    assert "the one chosen on the validation nodes 70.00 %, their ensemble 70.00 %" in text
    assert said in text


def test_a_page_shows_every_student_every_layer_and_the_data(tmp_path: Path) -> None:
    text = page_text({"oad": group([60.0, 70.0], [50.0, 55.0])}, tmp_path)
    assert "labels alone" not in text
    for shown in ("oad 1", "oad 2, chosen", "oad, 1", "oad, 2", "edges within a class [%]", "2 isolated nodes"):
        assert shown in text
    assert "nan" not in text.lower().replace("finance", "")
    assert text.count("<svg") == 1
    assert "http" not in text.replace("http://www.w3.org", "")


def test_curves_are_means_over_the_students_whatever_the_method_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(report, "training_curves", lambda panels: str(drawn.update(panels)))
    page_text({"alone": group([60.0], [50.0]), "oad": group([61.0], [50.0])}, tmp_path)
    measured = {"validation accuracy [%]": 51.0, "test accuracy [%]": 52.0, "validation loss": 1.0}
    # The losses of training are sums over students, or of one student, as the method has it.
    assert list(drawn) == list(measured)
    for title, value in measured.items():
        assert list(drawn[title]) == ["alone", "oad"]
        assert drawn[title]["oad"] == [pytest.approx(math.nan, nan_ok=True), value]


def test_several_labels_are_measured_in_micro_f1(tmp_path: Path) -> None:
    text = page_text({"oad": group([60.0], [50.0], measure="micro_f1")}, tmp_path, measure="micro_f1")
    assert "test micro-F1" in text
    assert "accuracy" not in text


def test_a_single_student_has_a_page_without_a_comparison_of_structures(tmp_path: Path) -> None:
    text = page_text({"oad": group([60.0], [50.0], structure=math.nan)}, tmp_path)
    assert "oad, 1" in text


def test_data_without_homophily_leave_the_row_out() -> None:
    rows = data_table(ABOUT).rows
    assert ["edges within a class [%]", 80] in rows
    assert ["train nodes", 18] in rows
    assert len(data_table(ABOUT | {"homophily": None}).rows) == len(rows) - 1


def cell(mean: float, *, structure: float | None = 0.25) -> dict[str, Any]:
    layers = {"structure": [0.5, structure], "similarity": [0.5, 0.75], "dirichlet": [0.1, 0.2], "mad": [0.3, 0.4]}
    kept = {"test_mean": mean, "test_chosen": mean + 1, "test_ensemble": mean + 2, "test_spread": 0.5, "seconds": 2.0}
    return kept | {"layers": layers}


def test_a_bench_gives_intervals_and_differences_paired_seed_by_seed() -> None:
    base, own = [60.0, 62.0, 67.0], [61.5, 63.0, 69.5]
    table = bench_table({"independent": [cell(v) for v in base], "oad": [cell(v) for v in own]}, "accuracy")
    first, second = table.rows
    half = stats.t.ppf(0.975, 2) * stats.tstd(own) / 3**0.5
    assert second[:2] == ["oad", f"{sum(own) / 3:.2f} ± {half:.2f}"]
    paired = stats.ttest_rel(own, base).confidence_interval(0.95)
    assert first[2] is None
    middle, half = (paired.low + paired.high) / 2, (paired.high - paired.low) / 2
    assert second[2] == f"+{middle:.2f} ± {half:.2f}"
    assert second[-1] == 0.5


def test_a_single_seed_has_no_interval_and_a_bench_without_the_baseline_no_difference() -> None:
    table = bench_table({"oad": [cell(61.0)]}, "accuracy")
    assert [column.title for column in table.columns if "vs" in column.title] == []
    assert table.rows[0][1] == "61.00"


def bench_text(cells: dict[str, list[dict[str, Any]]], tmp_path: Path) -> str:
    seeds = list(range(len(next(iter(cells.values())))))
    result = {"measure": "accuracy", "data": ABOUT, "environment": {}, "notes": ["A note."], "seeds": seeds}
    write_page(tmp_path / "report.html", bench_page(cells, result, {"seed": 0}, "stillroom graphs bench"))
    return (tmp_path / "report.html").read_text()


def test_the_page_of_a_bench_names_the_best_and_its_lead(tmp_path: Path) -> None:
    cells = {"independent": [cell(60.0), cell(62.0)], "oad": [cell(62.0), cell(63.0)]}
    text = bench_text(cells, tmp_path)
    assert "oad is best on average, with 62.50 % test accuracy, 1.50 points above independent." in text
    assert "2 methods on toy, 2 seeds" in text
    assert "A note." in text
    text = bench_text({"independent": [cell(66.0)], "oad": [cell(62.0)]}, tmp_path)
    assert "independent is best on average, with 66.00 % test accuracy." in text


def test_a_bench_of_single_students_has_no_structures_to_compare(tmp_path: Path) -> None:
    assert "independent" in bench_text({"independent": [cell(60.0, structure=None)]}, tmp_path)


def test_records_are_plain_numbers() -> None:
    record = group([60.0], [50.0]).record()
    assert not any(isinstance(value, torch.Tensor) for value in record.values())
