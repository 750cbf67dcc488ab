"""Methods x settings x seeds on one data set: every repetition is kept when finished and resumed when killed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stillroom.errors import InputError, unknown_name
from stillroom.files import plain, write_text_atomic
from stillroom.hyperparameters import method_options as options_of
from stillroom.reports.page import environment, write_page
from stillroom.reports.tables import Table, markdown
from stillroom.screening._job import (
    MAY_CHANGE,
    check_same_data,
    check_settings,
    decoys_note,
    limited,
    prepared,
    threads_each,
)
from stillroom.screening.cross_validation import (
    SEEDS,
    Counting,
    check_measure,
    cross_validate,
    grid_points,
    inner_counting,
    new_screener,
)
from stillroom.screening.data.sources import read_from
from stillroom.screening.interactions import Interactions
from stillroom.screening.leaks import identical, leak_counts, leak_notes
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.protocols import Decoys, Setting, split_hash
from stillroom.screening.report import evaluation_page, evaluation_table, fold_notes, notes_of
from stillroom.training.jobs import check_cells, kept, run_jobs
from stillroom.training.progress import CellClock
from stillroom.training.run import RunDirectory

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` returns: a table a setting, and what is in ``result.json``."""

    tables: dict[str, Table]
    result: dict[str, Any]
    out: Path


@dataclass(frozen=True, kw_only=True)
class _Protocol:
    """What all cells share."""

    data: Interactions
    method_options: Mapping[str, Mapping[str, Any]]
    counting: Counting
    inner: Counting | None  # choose options inside the training folds, by folds like these
    by: str
    threads: int | None
    out: Path


_Cell = tuple[str, Setting, int]  # method, setting, seed


def evaluate(
    *,
    methods: Sequence[str] = ("nearest_profile", "rls_avg", "blm_nii", "wnn_gip"),
    settings: Sequence[Setting] = ("S1", "S2", "S3"),
    seeds: Sequence[int] = SEEDS[:1],
    num_folds: int = 10,
    data: str | ScreeningDataOptions = "generated",
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    tuned: bool = False,
    inner_folds: int = 5,
    by: str = "average_precision",
    decoys: Decoys = "unknown",
    ratio: int = 10,
    group_twins: bool = False,
    out: str | Path = "runs/screening",
    jobs: int = 1,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Evaluation:
    """Cross-validate methods under the settings a screening can meet, all on the same folds.

    S1 holds out pairs of drugs and targets that are both known otherwise, S2 drugs, S3 targets, S4 both at once: a
    method that fills gaps well may know nothing of a new drug. Settings are never mixed in one figure.

    Args:
        methods: Names of methods, see ``stillroom methods``.
        settings: S1, S2, S3, S4.
        seeds: Seeds of the folds and of the methods' draws; the published comparisons take 7771, 8367, 22, 1812, 4659.
        num_folds: Folds of one repetition; S4 makes a square number of blocks of them.
        data: The data set and its options.
        method_options: Method -> its options, where they differ from the defaults.
        tuned: Choose every method's options from its grid, fold by fold, inside the training pairs.
        inner_folds: Folds of that choice.
        by: The measure that chooses: average_precision, auc, precision_at_10, enrichment_1pct, bedroc or aupr, whose
            trapezoids favour options that give all pairs the same score.
        decoys: What counts as negative in a test fold: unknown takes all pairs not known to interact, as the
            literature does, measured only those measured as inactive, sampled some unknown ones.
        ratio: Sampled negatives for each interaction.
        group_twins: Keep drugs with identical structures and targets with identical sequences in one fold.
        out: The run directory; each repetition is kept in its ``cells`` folder.
        jobs: Repetitions at the same time, each in a process with its share of the cores.
        show_progress: Show progress on standard error.
        resume: Keep finished repetitions of the run in ``out`` and go on; methods, settings and seeds may be added.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        OutputError: A result could not be written.
    """
    own = method_options or {}
    check_cells(methods, seeds, jobs)
    check_settings(settings)
    check_measure(by)
    for name in own:
        if name not in methods:
            raise unknown_name("method in method_options", name, methods)
    options, interactions = prepared(data)
    for name in methods:  # before the first cell starts, not in the last one
        new_screener(name, interactions, own.get(name, {}), seeds[0])
    twins = identical(interactions)
    counting = Counting(
        num_folds=num_folds,
        decoys=decoys,
        ratio=ratio,
        drug_groups=twins.drug_groups if group_twins else None,
        target_groups=twins.target_groups if group_twins else None,
    )
    inner = inner_counting(counting, inner_folds, interactions, settings, seeds) if tuned else None
    splits: dict[Setting, dict[str, Any]] = {
        setting: _split(interactions, setting, counting, seeds, twins) for setting in settings
    }
    config: dict[str, Any] = {
        "methods": list(methods),
        "settings": list(settings),
        "seeds": list(seeds),
        "num_folds": num_folds,
        "data": plain(options),
        "method_options": plain(own),
        "tuned": tuned,
        "inner_folds": inner_folds,
        "by": by,
        "decoys": decoys,
        "ratio": ratio,
        "group_twins": group_twins,
        "out": str(out),
        "jobs": jobs,
    }
    run = RunDirectory.create(
        out,
        config,
        overwrite=overwrite,
        resume=resume,
        keep=read_from(options),
        may_change=MAY_CHANGE | {"methods", "settings", "seeds"},
    )
    protocol = _Protocol(
        data=interactions,
        method_options={name: dict(values) for name, values in own.items()},
        counting=counting,
        inner=inner,
        by=by,
        threads=threads_each(jobs),
        out=run.path,
    )
    wanted: list[_Cell] = [(name, setting, seed) for setting in settings for seed in seeds for name in methods]
    check_same_data(run.path, interactions)
    done = {cell: kept(_file(run.path, cell), dict) for cell in wanted if _file(run.path, cell).is_file()}
    missing = [cell for cell in wanted if cell not in done]
    clock = CellClock(len(wanted), len(done), show=show_progress)
    for cell, found in run_jobs(partial(_cell, protocol), missing, jobs):
        done[cell] = found
        name, setting, seed = cell
        scores = [100 * fold[by] for fold in found["folds"]]
        clock.tick(f"{name} {setting}", seed, sum(scores) / len(scores) if scores else float("nan"), found["seconds"])
    for setting in settings:
        found_there = {name: {str(seed): done[name, setting, seed] for seed in seeds} for name in methods}
        splits[setting] |= {"notes": [*splits[setting]["notes"], *fold_notes(found_there)], "methods": found_there}
    result: dict[str, Any] = {
        "data": interactions.describe(),
        "seeds": list(seeds),
        "settings": splits,
        "options": {
            name: options_of(new_screener(name, interactions, own.get(name, {}), seeds[0])) for name in methods
        },
        "decoys": decoys_note(decoys, ratio),
        "tuned": tuned,
        "notes": notes_of(tuned=tuned),
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    tables: dict[str, Table] = {setting: evaluation_table(found["methods"]) for setting, found in splits.items()}
    text = "\n\n".join(f"{setting}\n\n{markdown(table)}" for setting, table in tables.items())
    write_text_atomic(run.path / "tables.md", text + "\n")
    command = shlex.join(["stillroom", "screening", "evaluate", "--config", str(run.config), "--out", "NEW_DIRECTORY"])
    write_page(run.report, evaluation_page(result, config, command))
    return Evaluation(tables, result, run.path)


def _split(
    data: Interactions, setting: Setting, counting: Counting, seeds: Sequence[int], twins: Any
) -> dict[str, Any]:
    """Describe the folds of a setting: what they are, what they let through."""
    first = counting.folds(data, setting, seeds[0])
    counts = leak_counts(data, first, twins)
    return {
        "hashes": {str(seed): split_hash(counting.folds(data, setting, seed)) for seed in seeds},
        "folds": len(first),
        "leaks": counts,
        "notes": leak_notes(counts, setting),
    }


def _file(out: Path, cell: _Cell) -> Path:
    name, setting, seed = cell
    return out / "cells" / f"{name}-{setting}-seed{seed}.json"


def _cell(protocol: _Protocol, cell: _Cell) -> dict[str, Any]:
    """Cross-validate one method under one setting with one seed and write down what was measured."""
    name, setting, seed = cell
    options = protocol.method_options.get(name, {})

    def measured() -> dict[str, Any]:
        with limited(protocol.threads):
            try:
                found = cross_validate(
                    name,
                    protocol.data,
                    setting,
                    seed,
                    options=options,
                    counting=protocol.counting,
                    tuned=None if protocol.inner is None else grid_points(name, fixed=options),
                    inner=protocol.inner,
                    by=protocol.by,
                )
            except InputError as error:
                raise InputError(f"{name}, {setting}, seed {seed}: {error}") from None
        record: dict[str, Any] = plain(found)
        return record

    return kept(_file(protocol.out, cell), measured)
