"""Methods × seeds under one protocol: every cell is a run of its own, kept when finished, resumed when killed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.cells import (
    ALONE,
    Protocol,
    bench_method,
    kept_cells,
    rehearse_all,
    run_cells,
    train_teachers,
)
from stillroom.distillation.choices import TEACHERS, as_recipe, as_weights
from stillroom.distillation.distill import MAY_CHANGE
from stillroom.distillation.evaluate import evaluate
from stillroom.distillation.methods import family_of
from stillroom.distillation.networks import Normalisation, inputs
from stillroom.distillation.offline._method import Convention, Method
from stillroom.distillation.options import short_training
from stillroom.distillation.translation.bench import translations
from stillroom.errors import InputError, unknown_name
from stillroom.files import write_text_atomic
from stillroom.reports.html import BenchReport, bench_table, measured_table, write_report
from stillroom.reports.page import environment
from stillroom.reports.tables import Table, markdown
from stillroom.training.fabric import Device, Precision
from stillroom.training.jobs import check_cells
from stillroom.training.progress import CellClock
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory
from stillroom.training.teacher import Precision as TeacherPrecision

__all__ = ["ALONE", "Bench", "bench"]


@dataclass(frozen=True)
class Bench:
    """What :func:`bench` returns: the tables (accuracies; what else was measured) and what is in ``result.json``."""

    tables: tuple[Table, ...]
    result: dict[str, Any]
    out: Path


def bench(
    *,
    methods: Sequence[str] = (ALONE, "kd", "simkd", "rld"),
    seeds: Sequence[int] = (0, 1, 2),
    student: str = "resnet8",
    teacher: str | Sequence[str] = "resnet20",
    data: str | DataOptions = "digits",
    recipe: str | Recipe = "quick",
    weights: Convention = "simkd",
    temperature: float = 4.0,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    peers: int = 4,
    branch: str = "auto",
    teacher_epochs: int | None = None,
    teacher_normalisation: Normalisation = "auto",
    teacher_precision: TeacherPrecision = "32",
    teacher_cache: str | None = None,
    label_map: Mapping[str, str] | None = None,
    out: str | Path = "runs/bench",
    jobs: int = 1,
    device: Device = "auto",
    precision: Precision = "32",
    compile: bool = False,
    eval_every: int | None = None,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Bench:
    """Train the same student by several methods over several seeds and compare them.

    Every method starts from the same weights and sees the same pictures in the same order for the same seed, so
    differences are paired seed by seed. Accuracies are those of the last epoch on the test set. There is one teacher
    for all; the spread is that of the student.

    Args:
        methods: Names of methods, see ``stillroom methods``, and alone for the student on labels only.
        seeds: Seeds of initial weights, order, augmentation and dropout.
        student: Network to train, as for ``stillroom distill``.
        teacher: Network to learn from, as for ``stillroom distill``; one without weights is trained first, with seed 0.
            Give one --teacher for each of several; methods with one teacher learn from the first.
        data: The data set and its options.
        recipe: Epochs, optimiser and learning rates, or the name of a preset.
        weights: Weights of the objective's terms: the SimKD and SemCKD repositories' convention or the CRD benchmark's.
        temperature: Temperature of the classical KD term beside a method's own.
        method_options: Method -> its hyperparameters, where they differ from the paper's defaults.
        teacher_epochs: Epochs of a teacher that has to be trained; the recipe's when not given. With weights given,
            the teacher starts from them and adapts to the data for so many epochs.
        teacher_normalisation: What a teacher loaded from weights was normalised with; auto is what published weights
            say, else the data's. A run directory knows its own.
        peers: Students an online method trains together.
        branch: Where they part, as for ``stillroom distill``.
        teacher_precision: Compute the teacher in float32 or bfloat16.
        teacher_cache: Folder for the teacher's logits and pooled features; methods that read more than these keep
            the live teacher. Needs data.augment none or data.views.
        label_map: Student class name -> teacher class name, where they differ.
        out: The run directory; each cell is a run in its ``cells`` folder.
        jobs: Cells trained at the same time, each in a process with its share of the cores.
        device: Where to train.
        precision: Precision of the student's training.
        compile: Compile the whole forward pass of the training step.
        eval_every: Epochs between evaluations; only the last when not given.
        show_progress: Show progress on standard error.
        resume: Keep finished cells of the bench in ``out`` and go on; seeds and methods may be added.
        overwrite: Replace a finished bench in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        TrainingDivergedError: The loss of a cell became NaN or infinite.
        OutputError: A result could not be written.
    """
    _check(methods, seeds, jobs, method_options or {}, weights)
    asked = [teacher] if isinstance(teacher, str) else list(teacher)
    taught = any(name != ALONE and TEACHERS[family_of(name)] for name in methods)
    teachers = tuple(asked) if taught else ()
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        raise InputError("bench starts processes of its own; run it without torchrun and set jobs")
    options = DataOptions(name=data) if isinstance(data, str) else data
    recipe = as_recipe(recipe, student)
    config: dict[str, Any] = {
        "methods": list(methods),
        "seeds": list(seeds),
        "student": student,
        "teacher": asked[0] if len(asked) == 1 else asked,
        "data": asdict(options),
        "recipe": asdict(recipe),
        "weights": weights,
        "temperature": temperature,
        "method_options": {name: dict(own) for name, own in (method_options or {}).items()},
        "peers": peers,
        "branch": branch,
        "teacher_epochs": teacher_epochs,
        "teacher_normalisation": teacher_normalisation,
        "teacher_precision": teacher_precision,
        "teacher_cache": teacher_cache,
        "label_map": None if label_map is None else dict(label_map),
        "out": str(out),
        "jobs": jobs,
        "device": device,
        "precision": precision,
        "compile": compile,
        "eval_every": eval_every,
    }
    if "kt" in methods:
        return _bench_translation(config, options, show_progress, resume, overwrite)
    images = load_data(options)
    protocol = Protocol(
        student=student,
        teachers=teachers,
        data=options,
        recipe=recipe,
        weights=weights,
        temperature=temperature,
        teacher_normalisation=teacher_normalisation,
        teacher_precision=teacher_precision,
        teacher_cache=teacher_cache,
        label_map=label_map,
        peers=peers,
        branch=branch,
        method_options=config["method_options"],
        eval_every=recipe.epochs if eval_every is None else eval_every,
        device=device,
        precision=precision,
        compile=compile,
        threads=max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None,
        out=Path(out),
    )
    rehearse_all(protocol, images, methods, teacher_epochs)
    run = RunDirectory.create(
        out,
        config,
        overwrite=overwrite,
        resume=resume,
        keep=inputs(student, *teachers),
        may_change=MAY_CHANGE | {"methods", "seeds", "jobs", "teacher_cache"},
    )
    protocol = replace(protocol, teachers=train_teachers(protocol, images, teacher_epochs, show_progress))
    reached = {
        f"teacher {number} ({measured['architecture']})": measured["accuracy"]
        for number, measured in enumerate(
            (
                evaluate(
                    place,
                    images,
                    teacher_normalisation,
                    label_map=label_map,
                    precision=teacher_precision,
                    device=device,
                )
                for place in protocol.teachers
            ),
            start=1,
        )
    }
    cells: dict[str, dict[int, dict[str, Any]]] = {method: {} for method in methods}
    wanted = [(method, seed) for seed in seeds for method in methods]
    for method, seed, cell in kept_cells(protocol, wanted):
        cells[method][seed] = cell
    missing = [(method, seed) for method, seed in wanted if seed not in cells[method]]
    clock = CellClock(len(wanted), len(wanted) - len(missing), show=show_progress)
    for method, seed, cell in run_cells(protocol, missing, jobs):
        cells[method][seed] = cell
        clock.tick(method, seed, cell["test_accuracy"], cell["seconds"])
    accuracies = {method: [cells[method][seed]["test_accuracy"] / 100 for seed in seeds] for method in methods}
    trained = [bench_method(name, config["method_options"]) for name in methods if name != ALONE]
    short = [note for method in trained for note in short_training(method, recipe.epochs)]
    source = f" learning from {' and '.join(asked)}" if taught else ""
    report = BenchReport(
        title=f"{student}{source} on {images.name}, {len(seeds)} seeds",
        accuracies=accuracies,
        seeds=tuple(seeds),
        baselines=(ALONE, "kd"),
        teacher_accuracies={name: accuracy / 100 for name, accuracy in reached.items()},
        measured=_measured(cells, seeds),
        config=config,
        environment=environment(),
        command=shlex.join(["stillroom", "bench", "--config", str(run.config), "--out", "NEW_DIRECTORY"]),
        notes=[
            "Accuracies are those of the last epoch on the test set; no epoch was chosen on it.",
            *(["The same teachers for all cells: the spread is that of the student's seeds."] if taught else []),
            *short,
        ],
    )
    tables = (bench_table(report), measured_table(report)) if report.measured else (bench_table(report),)
    result = {
        "data": images.describe(),
        "teachers": reached,
        "cells": {method: {str(seed): cells[method][seed] for seed in seeds} for method in methods},
        "notes": short,
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    write_text_atomic(run.path / "table.md", "\n\n".join(markdown(each) for each in tables) + "\n")
    write_report(run.report, report)
    return Bench(tables, result, run.path)


def _bench_translation(
    config: dict[str, Any], data: DataOptions, show_progress: bool, resume: bool, overwrite: bool
) -> Bench:
    """Compare translated blocks with others; networks and recipe are translation's own."""
    own = config["method_options"].get("kt", {})
    run = RunDirectory.create(
        config["out"], config, overwrite=overwrite, resume=resume, may_change=MAY_CHANGE | {"seeds", "jobs"}
    )
    accuracies = translations(
        config["seeds"],
        data,
        run.path / "cells",
        options=own,
        device=config["device"],
        jobs=config["jobs"],
        show_progress=show_progress,
    )
    report = BenchReport(
        title=f"Blocks written by kt on {data.name}, {len(config['seeds'])} seeds",
        accuracies=accuracies,
        seeds=tuple(config["seeds"]),
        baselines=("random small block", "mean of the pairs"),
        config=config,
        environment=environment(),
        command=shlex.join(["stillroom", "bench", "--config", str(run.config), "--out", "NEW_DIRECTORY"]),
        notes=["Accuracies are means over the validation networks, of blocks inserted as they are."],
    )
    result = {"cells": accuracies, "teachers": {}, "notes": [], "environment": environment(), "out": config["out"]}
    table = bench_table(report)
    run.write_result(result)
    write_text_atomic(run.path / "table.md", markdown(table) + "\n")
    write_report(run.report, report)
    return Bench((table,), result, run.path)


def _measured(
    cells: Mapping[str, Mapping[int, Mapping[str, Any]]], seeds: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """Return the plain numbers every seed of a method measured besides its accuracy: figure -> method -> values."""
    found: dict[str, dict[str, list[float]]] = {}
    for method, by_seed in cells.items():
        own = [_numbers(by_seed[seed].get("measured", {})) for seed in seeds]
        for figure in own[0]:
            if all(figure in each for each in own):
                found.setdefault(figure, {})[method] = [each[figure] for each in own]
    return found


def _numbers(measured: Mapping[str, Any], of: str = "") -> dict[str, float]:
    """Return the plain numbers among what was measured, those of inner mappings named after both keys."""
    found: dict[str, float] = {}
    for name, value in measured.items():
        words = of + name.replace("_", " ")
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{words}, ")
        elif isinstance(value, int | float):
            found[words] = float(value)
    return found


def _check(
    methods: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
    own: Mapping[str, Mapping[str, Any]],
    weights: str,
) -> None:
    """Refuse what would fail only in the last cell, before the first one starts."""
    check_cells(methods, seeds, jobs)
    if "kt" in methods and len(methods) > 1:
        raise InputError("kt translates weights instead of training a student; compare it in a bench of its own")
    for name in methods:
        if name != ALONE and isinstance(method := bench_method(name, own), Method):
            as_weights(weights, method)  # type: ignore[arg-type]
    for name in own:
        if name not in methods:
            raise unknown_name("method in method_options", name, methods)
