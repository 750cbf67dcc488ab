"""The cells of a bench: one method with one seed each, trained here or in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from stillroom.data.images import ImageData
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.cache import cached_teacher
from stillroom.distillation.distill import as_weights
from stillroom.distillation.methods import METHODS, method_class
from stillroom.distillation.networks import (
    Network,
    Normalisation,
    cacheable,
    live_teacher,
    load_network,
    new_network,
    to_be_trained,
    twin,
)
from stillroom.distillation.offline._method import Convention, Method
from stillroom.distillation.options import method_defaults, method_options
from stillroom.distillation.training import Setting, rehearse, train_alone, train_distilled
from stillroom.errors import FailureError, InputError, unknown_name
from stillroom.models.store import save_model
from stillroom.training.contracts import Teacher
from stillroom.training.fabric import Device, Precision, make_fabric
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
    "train_teacher",
]

ALONE = "alone"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all cells of a bench share."""

    student: str
    teacher: str  # trained: a run directory or NAME@WEIGHTS
    data: DataOptions
    recipe: Recipe
    weights: Convention
    temperature: float
    teacher_normalisation: Normalisation
    teacher_precision: TeacherPrecision
    teacher_cache: str | None
    label_map: Mapping[str, str] | None
    method_options: Mapping[str, Mapping[str, Any]]
    eval_every: int
    device: Device
    precision: Precision
    compile: bool
    threads: int | None
    out: Path


def bench_method(name: str, own: Mapping[str, Mapping[str, Any]]) -> Method:
    """Return a method with its hyperparameters from ``method_options``.

    Raises:
        InputError: There is no such method or option.
    """
    if name not in METHODS:
        raise unknown_name("method", name, [ALONE, *METHODS])
    method = method_class(name)
    options = own.get(name, {})
    for option in options:
        if option not in method_defaults(method):
            raise unknown_name(f"option of {name}", option, method_defaults(method))
    try:
        return method(**options)
    except TypeError as error:
        raise InputError(f"method_options of {name}: {error}") from None


def rehearse_all(protocol: Protocol, images: ImageData, methods: Sequence[str], teacher_epochs: int | None) -> None:
    """Refuse what would fail only in a late cell, before the first one starts.

    Raises:
        InputError: A method cannot work for this pair, batch size or cache.
    """
    fabric = make_fabric(protocol.device, protocol.precision)
    setting = Setting(
        data=images,
        recipe=protocol.recipe,
        seed=0,
        fabric=fabric,
        views=protocol.data.views,
        eval_every=protocol.eval_every,
    )
    with torch.random.fork_rng():
        student = new_network(protocol.student, images)
        trains = to_be_trained(protocol.teacher, teacher_epochs)
        teacher = new_network(protocol.teacher, images) if trains else _teacher(protocol, images)
        for name in methods:
            if name == ALONE:
                setting.train_loader()
                continue
            method = bench_method(name, protocol.method_options)
            cached = _is_cached(protocol, method)
            live, classifier = live_teacher(
                twin(teacher), images, signals=method.signals, device=fabric.device, label_map=protocol.label_map
            )
            weights = as_weights(protocol.weights, method)
            rehearse(
                student,
                live,
                method,
                weights,
                setting,
                teacher_classifier=classifier,
                temperature=protocol.temperature,
                cached=cached,
            )


def _teacher(protocol: Protocol, images: ImageData) -> Network:
    return load_network(protocol.teacher, images, normalisation=protocol.teacher_normalisation)


def _is_cached(protocol: Protocol, method: Method) -> bool:
    # Methods that read feature maps keep the live teacher.
    return protocol.teacher_cache is not None and method.signals <= {"pooled"}


def train_teacher(protocol: Protocol, images: ImageData, epochs: int | None, show_progress: bool) -> str:
    """Train the one teacher of all cells, unless an earlier run did, and return its directory."""
    run = RunDirectory(protocol.out / "teacher")
    if not (run.path / "model.json").is_file():
        recipe = replace(protocol.recipe, epochs=epochs or protocol.recipe.epochs)
        fabric = make_fabric(protocol.device, protocol.precision)
        setting = Setting(
            data=images, recipe=recipe, seed=0, fabric=fabric, views=protocol.data.views, resume=True,
            compile=protocol.compile, eval_every=recipe.epochs, show_progress=show_progress,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = new_network(protocol.teacher, images)
        trained = train_alone(network, setting, run, label="teacher")
        save_model(run.path, trained.network.model, replace(network.card, extra={"seed": 0}))
    return str(run.path)


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
    if jobs == 1:
        for method, seed in wanted:
            yield method, seed, _cell(protocol, method, seed)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_leave_with_parent) as pool:
        futures = {pool.submit(_cell, protocol, method, seed): (method, seed) for method, seed in wanted}
        try:
            for future in as_completed(futures):
                yield *futures[future], future.result()
        except BrokenProcessPool:
            raise FailureError(
                "a training process died (killed for memory?); resume the bench with fewer jobs at a time"
            ) from None
        except BaseException:
            for process in active_children():  # what they have done is in their checkpoints
                process.terminate()
            raise


def _leave_with_parent() -> None:
    """End a worker without a word when the bench is interrupted, and when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(protocol: Protocol, name: str, seed: int) -> RunDirectory:
    return RunDirectory(protocol.out / "cells" / f"{name}-seed{seed}")


def _cell(protocol: Protocol, name: str, seed: int) -> dict[str, Any]:
    """Train one method with one seed, and save the student and what was measured."""
    run = _run(protocol, name, seed)
    if protocol.threads is not None:
        torch.set_num_threads(protocol.threads)
    images = _images(protocol.data)
    fabric = make_fabric(protocol.device, protocol.precision)
    setting = Setting(
        data=images, recipe=protocol.recipe, seed=seed, fabric=fabric, views=protocol.data.views, resume=True,
        compile=protocol.compile, eval_every=protocol.eval_every, show_progress=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student = new_network(protocol.student, images)
    started = time.monotonic()
    if name == ALONE:
        trained = train_alone(student, setting, run, label=ALONE)
    else:
        method = bench_method(name, protocol.method_options)
        network = _teacher(protocol, images)
        cached = _is_cached(protocol, method)
        signals = cacheable(network, method.signals) if cached else method.signals
        live, classifier = live_teacher(
            network,
            images,
            signals=signals,
            device=fabric.device,
            precision=protocol.teacher_precision,
            label_map=protocol.label_map,
        )
        says: Teacher = live
        if cached and protocol.teacher_cache is not None:
            says = cached_teacher(live, setting, Path(protocol.teacher_cache), needs=method.signals)
        trained = train_distilled(
            student,
            says,
            method,
            as_weights(protocol.weights, method),
            setting,
            run,
            teacher_classifier=classifier,
            temperature=protocol.temperature,
        )
    cell = {
        "test_accuracy": trained.test_accuracy,
        "best_on_holdout": trained.best_on_holdout(),
        "seconds": time.monotonic() - started,
        "options": {} if name == ALONE else method_options(method),
    }
    save_model(run.path, trained.network.model, replace(trained.network.card, extra={"method": name, "seed": seed}))
    run.write_result(cell)
    return cell


@lru_cache(maxsize=1)
def _images(options: DataOptions) -> ImageData:
    # A process trains many cells; the data are read once.
    return load_data(options)
