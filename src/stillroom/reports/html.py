"""One self-contained page about a run: no scripts, no network, readable in the light, in the dark and in print."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stillroom.errors import InputError, MissingExtraError
from stillroom.files import write_text_atomic
from stillroom.reports import plots
from stillroom.reports.changes import ClassChanges
from stillroom.reports.tables import Cell, Column, Table, interval_text, mean_ci, paired_difference, scaled

if TYPE_CHECKING:
    from stillroom.reports.page import Section

__all__ = [
    *("BenchReport", "ModelRow", "Report", "bench_table", "comparison_table", "headline", "measured_table", "render"),
    "write_report",
]

TEMPLATES = Path(__file__).parent / "templates"
MOST_CLASSES = 20  # in a plot; the tables hold them all
MOST_PAIRS = 12


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One network of the comparison."""

    name: str  # "teacher" (or "teacher 1" and so on), "student alone", "student distilled", or what a method adds
    architecture: str
    accuracy: float  # 0 to 1
    parameters: int
    flops: int
    latency_ms: float
    size_mb: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the page of a distillation shows.

    Args:
        title: What was distilled, in a few words.
        models: Teachers ("teacher", or "teacher 1" and so on; may be missing), "student alone" (may be missing), what
            else was measured, and the distilled student last.
        curves: Title with unit -> series -> one value per epoch; the last series of each is emphasised.
        changes: Teacher and distilled student class by class.
        sections: What the method adds, before the changes per class.
        config: The complete configuration, nested or flat.
        environment: Versions and devices.
        command: The command line that reproduces the run.
        notes: Sentences the reader must know (a split that was reduced, a metric that was not taken).
    """

    title: str
    models: Sequence[ModelRow]
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    changes: ClassChanges | None = None
    sections: Sequence[Section] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    command: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What the page of a benchmark shows.

    Args:
        title: What was compared, in a few words.
        accuracies: Method -> accuracy (0 to 1) per seed, the same seeds in the same order for all.
        seeds: The seeds.
        baselines: Methods the others are paired with, seed by seed; those that did not run are passed over.
        teacher_accuracies: Accuracy of every teacher (0 to 1) by its name.
        measured: What else some methods measured: figure -> method -> value per seed.
        config: The complete configuration, nested or flat.
        environment: Versions and devices.
        command: The command line that reproduces the table.
        notes: Sentences the reader must know.
    """

    title: str
    accuracies: Mapping[str, Sequence[float]]
    seeds: Sequence[int]
    baselines: Sequence[str] = ("alone", "kd")
    teacher_accuracies: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    command: str = ""
    notes: Sequence[str] = ()


def comparison_table(models: Sequence[ModelRow]) -> Table:
    """Set networks side by side; counts are scaled so that the smallest network still shows."""
    per_parameter, parameter_unit = scaled([model.parameters for model in models])
    per_flop, flop_unit = scaled([model.flops for model in models])
    columns = [
        Column("model"),
        Column("architecture"),
        Column("top-1 [%]", ".2f"),
        Column(_with_unit("parameters", parameter_unit), ",.1f" if parameter_unit else ",.0f"),
        Column(_with_unit("FLOPs", flop_unit), ",.1f" if flop_unit else ",.0f"),
        Column("latency [ms]", ",.2f"),
        Column("size [MB]", ",.2f"),
    ]
    rows: list[list[Cell]] = [
        [
            model.name,
            model.architecture,
            100 * model.accuracy,
            model.parameters / per_parameter,
            model.flops / per_flop,
            model.latency_ms,
            model.size_mb,
        ]
        for model in models
    ]
    return Table(columns, rows)


def _with_unit(title: str, unit: str) -> str:
    return f"{title} [{unit}]" if unit else title


def headline(models: Sequence[ModelRow]) -> str:
    """Say in a sentence or two what the distillation brought; models as in :class:`Report`."""
    *others, distilled = models
    teachers = _teachers(others)
    said = f"The distilled student reaches {100 * distilled.accuracy:.2f} %"
    if teachers:
        teacher = max(teachers, key=lambda model: model.accuracy)
        whose = "its teacher" if len(teachers) == 1 else f"the best of its {len(teachers)} teachers"
        said += (
            f" where {whose} reaches {100 * teacher.accuracy:.2f} %, with "
            f"{_times(teacher.parameters, distilled.parameters, 'fewer', 'more', 'parameters')} and "
            f"{_times(teacher.latency_ms, distilled.latency_ms, 'less', 'more', 'time per image')}"
        )
    said += "."
    for student in (model for model in others if model.name == "student alone"):
        points = 100 * (distilled.accuracy - student.accuracy)
        if abs(points) < 0.005:
            said += " Trained alone, the same student is as good."
        else:
            said += f" That is {abs(points):.2f} points {'above' if points > 0 else 'below'} the same student alone."
    return said


def _teachers(models: Sequence[ModelRow]) -> list[ModelRow]:
    return [model for model in models if model.name.startswith("teacher")]


def _times(before: float, after: float, less: str, more: str, what: str) -> str:
    if not before or not after:
        return f"{after:,.0f} instead of {before:,.0f} {what}"
    ratio = max(before, after) / min(before, after)
    if ratio < 1.05:
        return f"as {'many' if less == 'fewer' else 'much'} {what}"
    digits = 1 if ratio < 10 else 0
    return f"{ratio:.{digits}f} times {less if after <= before else more} {what}"


def bench_table(report: BenchReport) -> Table:
    """Give each method's mean and 95 % confidence interval, and its paired difference to each baseline."""
    baselines = [name for name in report.baselines if name in report.accuracies]
    columns = [
        Column("method"),
        Column("seeds", "d"),
        Column("top-1, mean ± 95 % CI [%]", ".2f"),
        *(Column(f"vs {name} [points]", "+.2f") for name in baselines),
    ]
    rows: list[list[Cell]] = []
    for name, values in report.accuracies.items():
        if len(values) != len(report.seeds):
            raise InputError(f"{name} has {len(values)} accuracies for {len(report.seeds)} seeds")
        row: list[Cell] = [name, len(values), _interval(*mean_ci(values), sign="")]
        for other in baselines:
            same = other == name
            row.append(None if same else _interval(*paired_difference(values, report.accuracies[other]), sign="+"))
        rows.append(row)
    return Table(columns, rows)


def _interval(mean: float, half_width: float, *, sign: str) -> str:
    return interval_text(100 * mean, 100 * half_width, sign=sign)


def _bench_headline(report: BenchReport) -> str:
    means = {name: mean_ci(values)[0] for name, values in report.accuracies.items()}
    best = max(means, key=means.__getitem__)
    seeds = "1 seed" if len(report.seeds) == 1 else f"{len(report.seeds)} seeds"
    said = f"{best} is best on average, with {100 * means[best]:.2f} % over {seeds}"
    for name in report.baselines:
        if name in means and name != best:
            said += f", {100 * (means[best] - means[name]):.2f} points above {name}"
    if report.teacher_accuracies:
        each = ", ".join(f"{100 * accuracy:.2f} %" for accuracy in report.teacher_accuracies.values())
        said += f"; the teacher has {each}" if len(report.teacher_accuracies) == 1 else f"; the teachers have {each}"
    return said + "."


def measured_table(report: BenchReport) -> Table:
    """Give mean and standard deviation over the seeds of whatever else the methods measured."""
    methods = [name for name in report.accuracies if any(name in values for values in report.measured.values())]
    columns = [Column("method"), *(Column(figure, ".3f") for figure in report.measured)]
    rows: list[list[Cell]] = []
    for name in methods:
        row: list[Cell] = [name]
        for values in report.measured.values():
            row.append(_spread(values[name]) if name in values else None)
        rows.append(row)
    return Table(columns, rows)


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.4g}"
    return f"{mean:.4g} ± {math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)):.2g}"


def write_report(path: Path, report: Report | BenchReport) -> None:
    """Write the page, atomically.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    if isinstance(report, Report):
        render(path, "distill.html", report, _distill_content(report))
    else:
        render(path, "bench.html", report, _bench_content(report))


class _Framed(Protocol):
    """What every page shows around its content."""

    @property
    def title(self) -> str: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def config(self) -> Mapping[str, object]: ...
    @property
    def environment(self) -> Mapping[str, object]: ...
    @property
    def command(self) -> str: ...


def render(path: Path, template: str, report: _Framed, content: Mapping[str, Any]) -> None:
    """Write a template filled with what every page shows and with its own content."""
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("jinja2", "vision") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    shared = {
        "title": report.title,
        "notes": report.notes,
        "config": list(_flat(report.config)),
        "environment": list(_flat(report.environment)),
        "command": report.command,
    }
    write_text_atomic(path, environment.get_template(template).render(**shared, **content))


def _distill_content(report: Report) -> dict[str, Any]:
    points = [plots.Point(model.name, model.accuracy, model.latency_ms) for model in report.models]
    return {
        "headline": headline(report.models),
        "comparison": comparison_table(report.models),
        "scatter": plots.accuracy_vs_latency(points),
        "curves": plots.training_curves(report.curves) if report.curves else "",
        "sections": report.sections,
        "changes": None if report.changes is None else _changes_content(report.changes),
        "teacher": "best teacher" if len(_teachers(report.models)) > 1 else "teacher",
    }


def _changes_content(changes: ClassChanges) -> dict[str, Any]:
    order = changes.order
    names = list(changes.classes)
    points = 100 * (changes.student - changes.teacher)
    # Both ends matter; the middle of a long list is the part nobody looks at.
    ends = order if len(order) <= MOST_CLASSES else order[: MOST_CLASSES - 5] + order[-5:]
    involved = changes.lost.sum(0) + changes.lost.sum(1)
    shown = sorted(sorted(order, key=lambda k: -involved[k])[:MOST_CLASSES])
    table = Table(
        [
            Column("class"),
            Column("samples", ",d"),
            Column("teacher [%]", ".2f"),
            Column("student [%]", ".2f"),
            Column("change [points]", "+.2f"),
            Column("lost", "d"),
        ],
        [
            [
                names[k],
                int(changes.samples[k]),
                100 * float(changes.teacher[k]),
                100 * float(changes.student[k]),
                float(points[k]),
                int(changes.lost[k].sum()),
            ]
            for k in order
        ],
    )
    pairs = Table(
        [Column("true class"), Column("student's answer"), Column("lost", "d")],
        [list(pair) for pair in changes.pairs(MOST_PAIRS)],
    )
    return {
        "table": table,
        "bars": plots.class_change_bars([names[k] for k in ends], [float(points[k]) for k in ends]),
        "pairs": pairs,
        "heat_map": plots.lost_heat_map([names[k] for k in shown], changes.lost[shown][:, shown]),
        "lost": int(changes.lost.sum()),
        "won": changes.won,
        "samples": int(changes.samples.sum()),
        "cut": len(order) > MOST_CLASSES,
        "most": MOST_CLASSES,
    }


def _bench_content(report: BenchReport) -> dict[str, Any]:
    percent = {name: [100 * value for value in values] for name, values in report.accuracies.items()}
    return {
        "headline": _bench_headline(report),
        "bench": bench_table(report),
        "strip": plots.seed_strip(percent),
        "measured": measured_table(report) if report.measured else None,
        "seeds": ", ".join(str(seed) for seed in report.seeds),
    }


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of a nested configuration under dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(str(item) for item in value)
        else:
            yield f"{prefix}{key}", str(value)
