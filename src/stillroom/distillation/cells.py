"""The cells of a bench: one method with one seed each, trained here or in processes of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from stillroom.data.images import ImageData
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.choices import as_weights
from stillroom.distillation.course import Course, check_teachers
from stillroom.distillation.data_free.training import as_teacher_sees
from stillroom.distillation.distill import new_students
from stillroom.distillation.methods import METHODS, AnyMethod, family_of, method_class
from stillroom.distillation.networks import Network, Normalisation, load_network, new_network, to_be_trained
from stillroom.distillation.offline._method import Convention, Method
from stillroom.distillation.training import Setting, train_alone
from stillroom.errors import InputError, unknown_name
from stillroom.hyperparameters import make_method, method_options
from stillroom.models.store import save_model
from stillroom.training.fabric import Device, Precision, make_fabric
from stillroom.training.jobs import run_jobs
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory
from stillroom.training.teacher import Precision as TeacherPrecision

__all__ = [
    "ALONE",
    "Protocol",
    "bench_method",
    "kept_cells",
    "rehearse_all",
    "run_cells",
    "train_teachers",
]

ALONE = "alone"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all cells of a bench share."""

    student: str
    teachers: tuple[str, ...]  # trained: run directories or NAME@WEIGHTS; methods with one teacher take the first
    data: DataOptions
    recipe: Recipe
    weights: Convention
    temperature: float
    teacher_normalisation: Normalisation
    teacher_precision: TeacherPrecision
    teacher_cache: str | None
    label_map: Mapping[str, str] | None
    peers: int
    branch: str
    method_options: Mapping[str, Mapping[str, Any]]
    eval_every: int
    device: Device
    precision: Precision
    compile: bool
    threads: int | None
    out: Path


def bench_method(name: str, own: Mapping[str, Mapping[str, Any]]) -> AnyMethod:
    """Return a method with its hyperparameters from ``method_options``.

    Raises:
        InputError: There is no such method or option.
    """
    if name not in METHODS:
        raise unknown_name("method", name, [ALONE, *METHODS])
    made: AnyMethod = make_method(method_class(name), name, own.get(name, {}))
    return made


def rehearse_all(protocol: Protocol, images: ImageData, methods: Sequence[str], teacher_epochs: int | None) -> None:
    """Refuse what would fail only in a late cell, before the first one starts.

    Raises:
        InputError: A method cannot work for these networks, this batch size or this cache.
    """
    setting = _setting(protocol, images, 0)
    with torch.random.fork_rng():
        teachers = [
            new_network(teacher, images) if to_be_trained(teacher, teacher_epochs) else _load(protocol, teacher, images)
            for teacher in protocol.teachers
        ]
        for name in methods:
            if name == ALONE:
                new_network(protocol.student, images)
                setting.train_loader()
            else:
                course, students, masters = _course(
                    protocol, bench_method(name, protocol.method_options), teachers, setting
                )
                course.rehearse(students, masters)


def _setting(protocol: Protocol, images: ImageData, seed: int) -> Setting:
    return Setting(
        data=images,
        recipe=protocol.recipe,
        seed=seed,
        fabric=make_fabric(protocol.device, protocol.precision),
        views=protocol.data.views,
        resume=True,
        compile=protocol.compile,
        eval_every=protocol.eval_every,
        show_progress=False,
    )


def _course(
    protocol: Protocol, method: AnyMethod, teachers: Sequence[Network], setting: Setting
) -> tuple[Course, list[Network], list[Network]]:
    """Return how a cell trains, its students with fresh weights, and the teachers among all that it learns from."""
    family = family_of(method.card.name)
    masters = list(teachers if family == "multi_teacher" else teachers[:1] if family != "online" else [])
    check_teachers(method, len(masters))
    if family == "data_free":
        setting = as_teacher_sees(setting, masters[0])
    # Methods that read feature maps keep the live teacher.
    cached = protocol.teacher_cache is not None and family != "data_free" and masters and method.signals <= {"pooled"}  # type: ignore[attr-defined]
    course = Course(
        method=method,
        setting=setting,
        weights=as_weights(protocol.weights, method) if isinstance(method, Method) else None,
        temperature=protocol.temperature,
        teacher_precision=protocol.teacher_precision,
        teacher_cache=Path(protocol.teacher_cache) if cached and protocol.teacher_cache else None,
        label_map=protocol.label_map,
        branch=None if protocol.branch == "none" else protocol.branch,
    )
    students = new_students(protocol.student, setting.data, protocol.peers if family == "online" else 1)
    return course, students, masters


def _load(protocol: Protocol, teacher: str, images: ImageData) -> Network:
    return load_network(teacher, images, normalisation=protocol.teacher_normalisation)


def train_teachers(protocol: Protocol, images: ImageData, epochs: int | None, show_progress: bool) -> tuple[str, ...]:
    """Train those teachers of all cells that have no weights, unless an earlier run did, and return where they lie."""
    places = []
    for number, teacher in enumerate(protocol.teachers):
        if not to_be_trained(teacher, epochs):
            places.append(teacher)
            continue
        run = RunDirectory(protocol.out / ("teacher" if len(protocol.teachers) == 1 else f"teacher-{number + 1}"))
        if not (run.path / "model.json").is_file():
            recipe = replace(protocol.recipe, epochs=epochs or protocol.recipe.epochs)
            setting = replace(
                _setting(protocol, images, number), recipe=recipe, eval_every=recipe.epochs, show_progress=show_progress
            )
            with torch.random.fork_rng():
                torch.manual_seed(number)
                network = new_network(teacher, images)
            trained = train_alone(network, setting, run, label=run.path.name)
            save_model(run.path, trained.network.model, replace(network.card, extra={"seed": number}))
        places.append(str(run.path))
    return tuple(places)


def kept_cells(protocol: Protocol, wanted: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield method, seed and measurements of the cells an earlier run finished.

    Raises:
        InputError: A cell's result is damaged.
    """
    for method, seed in wanted:
        result = _run(protocol, method, seed).result
        if result.is_file():
            try:
                yield method, seed, json.loads(result.read_text())
            except ValueError:
                raise InputError(f"{result} is damaged; remove it and resume the bench") from None


def run_cells(
    protocol: Protocol, wanted: Sequence[tuple[str, int]], jobs: int
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Train cells and yield method, seed and measurements of each as it ends.

    Raises:
        FailureError: A process died.
    """
    for (method, seed), cell in run_jobs(partial(_cell_of, protocol), wanted, jobs):
        yield method, seed, cell


def _run(protocol: Protocol, name: str, seed: int) -> RunDirectory:
    return RunDirectory(protocol.out / "cells" / f"{name}-seed{seed}")


def _cell_of(protocol: Protocol, cell: tuple[str, int]) -> dict[str, Any]:
    return _cell(protocol, *cell)


def _cell(protocol: Protocol, name: str, seed: int) -> dict[str, Any]:
    """Train one method with one seed, and save the student and what was measured."""
    run = _run(protocol, name, seed)
    if protocol.threads is not None:
        torch.set_num_threads(protocol.threads)
    setting = _setting(protocol, _images(protocol.data), seed)
    started = time.monotonic()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == ALONE:
            student = new_network(protocol.student, setting.data)
        else:
            method = bench_method(name, protocol.method_options)
            taught = [] if family_of(name) == "online" else protocol.teachers
            teachers = [_load(protocol, teacher, setting.data) for teacher in taught]
            torch.manual_seed(seed)  # the first student starts from the same weights whatever was loaded
            course, students, masters = _course(protocol, method, teachers, setting)
    if name == ALONE:
        trained = train_alone(student, setting, run, label=ALONE)
    else:
        trained = course.train(students, masters, run)
    cell = {
        "test_accuracy": trained.test_accuracy,
        "best_on_holdout": trained.best_on_holdout(),
        "seconds": time.monotonic() - started,
        "options": {} if name == ALONE else method_options(method),
        "measured": trained.measured,
    }
    save_model(run.path, trained.network.model, replace(trained.network.card, extra={"method": name, "seed": seed}))
    run.write_result(cell)
    return cell


@lru_cache(maxsize=1)
def _images(options: DataOptions) -> ImageData:
    # A process trains many cells; the data are read once.
    return load_data(options)
