"""The page says all that the run found, needs nothing but itself and lets no name break out."""

from __future__ import annotations

import dataclasses
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from stillroom.errors import InputError, MissingExtraError, OutputError
from stillroom.reports import plots
from stillroom.reports.changes import class_changes
from stillroom.reports.html import (
    BenchReport,
    ModelRow,
    Report,
    bench_table,
    comparison_table,
    headline,
    write_report,
)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

TEACHER = ModelRow(
    name="teacher",
    architecture="resnet56",
    accuracy=0.9437,
    parameters=855_770,
    flops=251_487_488,
    latency_ms=9.81,
    size_mb=3.46,
)
ALONE = ModelRow(
    name="student alone",
    architecture="resnet8",
    accuracy=0.8731,
    parameters=78_042,
    flops=24_893_696,
    latency_ms=1.42,
    size_mb=0.32,
)
DISTILLED = ModelRow(
    name="student distilled",
    architecture="resnet8",
    accuracy=0.8854,
    parameters=78_042,
    flops=24_893_696,
    latency_ms=1.43,
    size_mb=0.32,
)


def make_report(classes: tuple[str, ...] = CLASSES, samples: int = 2000) -> Report:
    generator = np.random.default_rng(0)
    target = generator.integers(len(classes), size=samples)

    def predictions(accuracy: float) -> np.ndarray:
        neighbour = (target + generator.choice([1, 1, 2, 5], size=samples)) % len(classes)
        return np.where(generator.random(samples) < accuracy - 0.02 * (target % 3), target, neighbour)

    epochs = np.arange(1, 31)
    return Report(
        title="resnet8 from resnet56 with simkd on cifar10",
        models=[TEACHER, ALONE, DISTILLED],
        curves={
            "test top-1 [%]": {
                "student alone": list(87.3 - 45 * np.exp(-epochs / 6)),
                "student distilled": list(88.5 - 40 * np.exp(-epochs / 5)),
            },
            "training loss": {
                "student alone": list(0.3 + 1.8 * np.exp(-epochs / 7)),
                "student distilled": list(0.2 + 1.2 * np.exp(-epochs / 5)),
            },
        },
        changes=class_changes(classes, target, predictions(0.95), predictions(0.87)),
        config={
            "teacher": "resnet56",
            "data": {"name": "cifar10", "augment": "crop-flip", "fraction": 1.0},
            "training": {"epochs": 30, "milestones": [15, 21, 27], "lr": 0.05},
            "seed": 0,
        },
        environment={"stillroom": "0.1.0", "torch": "2.6.0", "device": "cpu"},
        command="stillroom distill --teacher resnet56 --student resnet8 --method simkd --data cifar10 --seed 0",
        notes=["Latency was measured with one thread."],
    )


def make_bench() -> BenchReport:
    return BenchReport(
        title="Eight methods on few-label MNIST",
        accuracies={
            "alone": [0.9012, 0.8954, 0.9101],
            "kd": [0.9120, 0.9088, 0.9150],
            "simkd": [0.9301, 0.9266, 0.9340],
            "rld": [0.9177, 0.9150, 0.9181],
            "at": [0.8990, 0.8901, 0.9080],
        },
        seeds=[0, 1, 2],
        teacher_accuracies={"teacher": 0.9512},
        config={"data": {"name": "mnist", "fraction": 0.02}},
        environment={"torch": "2.6.0"},
        command="stillroom bench --methods alone,kd,simkd,rld,at --seeds 3",
    )


class Page(HTMLParser):
    """What a browser would see: texts, tags and every attribute that could fetch or run something."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "path", "use"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.references.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "path", "use"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


@pytest.mark.parametrize("report", [make_report(), make_bench()], ids=["distill", "bench"])
def test_the_page_needs_nothing_but_itself(report: Report | BenchReport, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report)
    source = (tmp_path / "report.html").read_text()
    page = Page(source)
    assert "http" not in source
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & set(page.tags)
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    assert not page.open  # every element is closed, in order
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_the_page_of_a_distillation_holds_every_number_and_section(tmp_path: Path) -> None:
    report = make_report()
    assert report.changes is not None
    write_report(tmp_path / "report.html", report)
    page = Page((tmp_path / "report.html").read_text())
    for wanted in ("94.37", "87.31", "88.54", "855.8", "78.0", "251.5", "9.81", "3.46", report.command, "training.lr"):
        assert wanted in page.texts
    for section in (
        "Accuracy and latency",
        "Training",
        "Change per class",
        "Confusion of what was lost",
        "To reproduce",
        "Configuration",
        "Environment",
    ):
        assert section in page.texts
    assert page.tags.count("svg") == 4
    worst = report.changes.order[0]
    table = page.texts[page.texts.index("change [points]") :]
    assert table.index(CLASSES[worst]) < min(table.index(CLASSES[k]) for k in report.changes.order[1:])
    assert any(f"gets {report.changes.lost.sum()} wrong that its teacher gets right" in line for line in page.texts)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = (
        "<script>alert(1)</script>",
        "</svg><img src=x onerror=alert(1)>",
        "a & b < c",
        "price $x^$ \\frac",
        '"quoted" -->',
    )
    report = dataclasses.replace(
        make_report(hostile),
        title=hostile[0],
        command=f"stillroom distill --name '{hostile[1]}'",
        config={hostile[0]: hostile[1]},
        environment={"torch": hostile[0]},
        notes=[hostile[1]],
        curves={hostile[0]: {hostile[1]: [1.0, 2.0]}},
    )
    write_report(tmp_path / "report.html", report)
    page = Page((tmp_path / "report.html").read_text())
    assert not {"script", "img"} & set(page.tags)
    assert not page.handlers
    assert not page.open
    # In the table, the list of pairs or configuration, and as a label of both plots.
    assert all(page.texts.count(name) >= 4 for name in hostile)


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_report(tmp_path / name, make_report())
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_plots_of_many_classes_are_cut_and_say_so_and_the_table_is_not(tmp_path: Path) -> None:
    names = tuple(f"class {k}" for k in range(60))
    write_report(tmp_path / "report.html", make_report(names))
    page = Page((tmp_path / "report.html").read_text())
    assert set(names) <= set(page.texts)
    assert "Change of accuracy per class; classes that lost most come first. The ends of a longer list." in page.texts
    assert max(page.texts.count(name) for name in names) <= 1 + 1 + 2 + 12  # table, bars, both axes, pairs


def test_a_run_without_curves_and_classes_still_has_its_page(tmp_path: Path) -> None:
    bare = Report(title="bare", models=[TEACHER, DISTILLED])
    write_report(tmp_path / "report.html", bare)
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("svg") == 1
    assert not {"Training", "Change per class", "To reproduce", "Configuration"} & set(page.texts)


def test_epochs_without_a_measurement_do_not_break_a_curve() -> None:
    nan = float("nan")
    for values, segments in (([1, 3, 2], 2), ([nan, 2, nan, 4], 1)):
        drawn = plots.training_curves({"top-1": {"student": values}})
        curve = re.search(r'<path d="([^"]*)"[^>]*stroke: var\(--accent\)', drawn)
        assert curve is not None
        assert curve[1].count("L") == segments


def test_the_headline_says_what_was_gained_and_what_was_not() -> None:
    said = headline([TEACHER, ALONE, DISTILLED])
    assert "88.54 % where its teacher reaches 94.37 %" in said
    assert "11 times fewer parameters" in said
    assert "1.23 points above the same student alone" in said
    worse = dataclasses.replace(DISTILLED, accuracy=0.86, latency_ms=2 * TEACHER.latency_ms)
    assert "1.31 points below the same student alone" in headline([TEACHER, ALONE, worse])
    assert "2.0 times more time" in headline([TEACHER, ALONE, worse])


def test_counts_are_scaled_so_that_the_smallest_network_shows() -> None:
    table = comparison_table([TEACHER, DISTILLED])
    assert [column.title for column in table.columns][3:5] == ["parameters [k]", "FLOPs [M]"]
    assert [row[3] for row in table.shown()] == ["855.8", "78.0"]


def test_the_bench_page_pairs_every_method_with_alone_and_kd(tmp_path: Path) -> None:
    table = bench_table(make_bench())
    assert [column.title for column in table.columns][3:] == ["vs alone [points]", "vs kd [points]"]
    rows = {row[0]: row[1:] for row in table.shown()}
    # simkd − alone = 2.89, 3.12, 2.39 points: mean 2.80, s = 0.3732, t = 4.3027
    assert rows["simkd"] == ["3", "93.02 ± 0.92", "+2.80 ± 0.93", "+1.83 ± 0.16"]
    assert rows["alone"][2] == "–"
    write_report(tmp_path / "bench.html", make_bench())
    page = Page((tmp_path / "bench.html").read_text())
    assert "93.02 ± 0.92" in page.texts
    assert any(line.startswith("simkd is best on average, with 93.02 % over 3 seeds") for line in page.texts)


def test_one_seed_has_no_interval_and_a_missing_seed_is_an_error() -> None:
    once = dataclasses.replace(make_bench(), accuracies={"alone": [0.9], "kd": [0.91]}, seeds=[0])
    assert bench_table(once).shown() == [["alone", "1", "90.00", "–", "-1.00"], ["kd", "1", "91.00", "+1.00", "–"]]
    with pytest.raises(InputError, match="kd has 1 accuracies for 2 seeds"):
        bench_table(dataclasses.replace(once, accuracies={"kd": [0.9]}, seeds=[0, 1]))


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_names_the_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed; .*stillroom\[vision\]"):
        write_report(tmp_path / "report.html", make_report())


def test_a_folder_that_is_missing_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_report(tmp_path / "nowhere" / "report.html", make_bench())
