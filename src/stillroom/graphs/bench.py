"""Methods x seeds on one data set under one protocol: every cell is kept when finished and resumed when killed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from stillroom.errors import unknown_name
from stillroom.files import plain, write_text_atomic
from stillroom.graphs.distill import MAY_CHANGE, NETWORK, RECIPE
from stillroom.graphs.evaluate import measure_name
from stillroom.graphs.methods import METHODS, method_class
from stillroom.graphs.networks import GNNOptions
from stillroom.graphs.node_data import NodeData
from stillroom.graphs.online._method import Method
from stillroom.graphs.options import GraphDataOptions, SBMOptions
from stillroom.graphs.report import bench_page, bench_table
from stillroom.graphs.sources import load_graphs
from stillroom.graphs.training import Init, SamplingOptions, Setting, method_notes, new_students, rehearse, train_group
from stillroom.hyperparameters import make_method, method_options
from stillroom.reports.page import environment, write_page
from stillroom.reports.tables import Table, markdown
from stillroom.training.fabric import Device, Precision, make_fabric
from stillroom.training.jobs import check_cells, kept, run_jobs
from stillroom.training.loop import check_intervals
from stillroom.training.progress import CellClock
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

__all__ = ["Bench", "bench"]


@dataclass(frozen=True)
class Bench:
    """What :func:`bench` returns: the table and what is in ``result.json``."""

    table: Table
    result: dict[str, Any]
    out: Path


@dataclass(frozen=True, kw_only=True)
class _Protocol:
    """What all cells of a bench share."""

    students: int
    init: Init
    network: GNNOptions
    data: GraphDataOptions
    sbm: SBMOptions
    redraw: bool
    sampling: SamplingOptions
    recipe: Recipe
    method_options: Mapping[str, Mapping[str, Any]]
    eval_every: int
    device: Device
    precision: Precision
    threads: int | None
    out: Path


def bench(
    *,
    methods: Sequence[str] = ("independent", "dml", "alignahead", "oad"),
    seeds: Sequence[int] = (0, 1, 2),
    students: int = 3,
    init: Init = "independent",
    network: GNNOptions = NETWORK,
    data: str | GraphDataOptions = "sbm",
    sbm: SBMOptions | None = None,
    redraw: bool = False,
    sampling: SamplingOptions | None = None,
    recipe: Recipe = RECIPE,
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path = "runs/graphs-bench",
    jobs: int = 1,
    device: Device = "auto",
    precision: Precision = "32",
    eval_every: int = 5,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Bench:
    """Train the same group of students by several methods over several seeds and compare them.

    For one seed the students of all methods start from the same weights and see the same batches, so differences are
    paired seed by seed. Every student is measured at its best epoch on the validation nodes.

    Args:
        methods: Names of methods, see ``stillroom methods``.
        seeds: Seeds of initial weights, order, sampled neighbours and dropout.
        students: Students in a group.
        init: independent gives every student weights of its own, copy those of the first to all.
        network: Shape of the students.
        data: The data set and its options.
        sbm: What the generated graph is like.
        redraw: Draw the random split or the generated graph anew for every seed, with that seed.
        sampling: How graphs become batches.
        recipe: Epochs, optimiser and learning rates.
        method_options: Method -> its hyperparameters, where they differ from the defaults.
        out: The run directory; each cell is a run in its ``cells`` folder.
        jobs: Cells trained at the same time, each in a process with its share of the cores.
        device: Where to train.
        precision: Precision of the training.
        eval_every: Epochs between evaluations.
        show_progress: Show progress on standard error.
        resume: Keep finished cells of the bench in ``out`` and go on; seeds and methods may be added.
        overwrite: Replace a finished bench in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        TrainingDivergedError: The loss of a cell became NaN or infinite.
        OutputError: A result could not be written.
    """
    own = method_options or {}
    check_cells(methods, seeds, jobs)
    _check(methods, own)
    check_intervals(eval_every, None)
    options = GraphDataOptions(name=data) if isinstance(data, str) else data
    protocol = _Protocol(
        students=students,
        init=init,
        network=network,
        data=options,
        sbm=sbm or SBMOptions(),
        redraw=redraw,
        sampling=sampling or SamplingOptions(),
        recipe=recipe,
        method_options={name: dict(values) for name, values in own.items()},
        eval_every=eval_every,
        device=device,
        precision=precision,
        threads=max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None,
        out=Path(out),
    )
    config: dict[str, Any] = {
        "methods": list(methods),
        "seeds": list(seeds),
        "students": students,
        "init": init,
        "network": asdict(network),
        "data": asdict(options),
        "sbm": asdict(protocol.sbm),
        "redraw": redraw,
        "sampling": asdict(protocol.sampling),
        "recipe": asdict(recipe),
        "method_options": protocol.method_options,
        "out": str(out),
        "jobs": jobs,
        "device": device,
        "precision": precision,
        "eval_every": eval_every,
    }
    graphs = _graphs(protocol, seeds[0])
    for name in methods:
        setting = _setting(protocol, graphs, seeds[0])
        method = bench_method(name, own)
        with torch.random.fork_rng():
            rehearse(_students(protocol, graphs, method), method, setting)
    run = RunDirectory.create(
        out, config, overwrite=overwrite, resume=resume, may_change=MAY_CHANGE | {"methods", "seeds", "jobs"}
    )
    wanted = [(name, seed) for seed in seeds for name in methods]
    done = {cell: kept(_file(protocol, cell), dict) for cell in wanted if _file(protocol, cell).is_file()}
    missing = [cell for cell in wanted if cell not in done]
    clock = CellClock(len(wanted), len(done), show=show_progress)
    for cell, measured in run_jobs(partial(_cell, protocol), missing, jobs):
        done[cell] = measured
        clock.tick(*cell, measured["test_mean"], measured["seconds"])
    cells = {name: [done[name, seed] for seed in seeds] for name in methods}
    notes = [note for name in methods for note in method_notes(bench_method(name, own), recipe)]
    if redraw and len(seeds) > 1:
        notes.append("Every seed has a split or generated graph of its own; the counts are those of the first.")
    measure = measure_name(graphs.multilabel)
    table = bench_table(cells, measure)
    result: dict[str, Any] = {
        "data": graphs.describe(),
        "measure": measure,
        "seeds": list(seeds),
        "cells": {name: {str(seed): done[name, seed] for seed in seeds} for name in methods},
        "options": {name: _options_of(name, own) for name in methods},
        "notes": notes,
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    write_text_atomic(run.path / "table.md", markdown(table) + "\n")
    command = shlex.join(["stillroom", "graphs", "bench", "--config", str(run.config), "--out", "NEW_DIRECTORY"])
    write_page(run.report, bench_page(cells, result, config, command))
    return Bench(table, result, run.path)


def bench_method(name: str, own: Mapping[str, Mapping[str, Any]]) -> Method:
    """Return a method with its hyperparameters from ``method_options``.

    Raises:
        InputError: There is no such method or option.
    """
    return make_method(method_class(name), name, own.get(name, {}))


def _check(methods: Sequence[str], own: Mapping[str, Any]) -> None:
    """Refuse what would fail only in the last cell, before the first one starts."""
    for name in methods:
        if name not in METHODS:
            raise unknown_name("method for graphs", name, METHODS)
    for name in own:
        if name not in methods:
            raise unknown_name("method in method_options", name, methods)


def _file(protocol: _Protocol, cell: tuple[str, int]) -> Path:
    return protocol.out / "cells" / f"{cell[0]}-seed{cell[1]}" / "result.json"


def _graphs(protocol: _Protocol, seed: int) -> NodeData:
    options, sbm = protocol.data, protocol.sbm
    if protocol.redraw:
        options, sbm = replace(options, seed=seed), replace(sbm, seed=None)
    return _loaded(options, sbm)


@lru_cache(maxsize=1)
def _loaded(options: GraphDataOptions, sbm: SBMOptions) -> NodeData:
    # A process trains many cells; the data are read once.
    return load_graphs(options, sbm)


def _setting(protocol: _Protocol, graphs: NodeData, seed: int) -> Setting:
    return Setting(
        data=graphs,
        recipe=protocol.recipe,
        seed=seed,
        fabric=make_fabric(protocol.device, protocol.precision),
        sampling=protocol.sampling,
        eval_every=protocol.eval_every,
        resume=True,
        show_progress=False,
    )


def _students(protocol: _Protocol, graphs: NodeData, method: Method) -> list[torch.nn.Module]:
    return new_students(
        graphs, protocol.network, protocol.students, init=protocol.init, shared=method.shares_first_layer
    )


def _cell(protocol: _Protocol, cell: tuple[str, int]) -> dict[str, Any]:
    """Train one method with one seed and write down what was measured."""
    name, seed = cell
    if protocol.threads is not None:
        torch.set_num_threads(protocol.threads)
    file = _file(protocol, cell)

    def measure() -> dict[str, Any]:
        graphs = _graphs(protocol, seed)
        method = bench_method(name, protocol.method_options)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            students = _students(protocol, graphs, method)
        group = train_group(students, method, _setting(protocol, graphs, seed), RunDirectory(file.parent), name)
        measured: dict[str, Any] = plain(group.record())
        return measured

    return kept(file, measure)


def _options_of(name: str, own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return method_options(bench_method(name, own))
