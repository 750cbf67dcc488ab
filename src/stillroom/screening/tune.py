"""Chooses a method's options without a look at the test pairs, and says what the choice is worth."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stillroom.files import plain
from stillroom.reports.page import environment, write_page
from stillroom.reports.tables import Table
from stillroom.screening._checks import in_range
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
    choose_options,
    grid_points,
    inner_counting,
    new_screener,
    score_fold,
)
from stillroom.screening.data.sources import read_from
from stillroom.screening.interactions import Interactions
from stillroom.screening.leaks import identical, leak_counts, leak_notes
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.protocols import Decoys, Setting
from stillroom.screening.report import points_table, tuning_page, tuning_table
from stillroom.training.jobs import kept, run_jobs
from stillroom.training.progress import counting as progress
from stillroom.training.run import RunDirectory

__all__ = ["Tuned", "tune"]

WHOLE = -1  # the number of the part that chooses on all pairs


@dataclass(frozen=True)
class Tuned:
    """What :func:`tune` returns: what the choice is worth, the grid's points, and what is in ``result.json``."""

    table: Table
    points: Table
    result: dict[str, Any]
    out: Path


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What all parts of a search share."""

    method: str
    data: Interactions
    points: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    setting: Setting
    seed: int
    outer: Counting
    inner: Counting
    by: str
    threads: int | None
    out: Path


def tune(
    *,
    method: str = "blm_nii",
    setting: Setting = "S1",
    data: str | ScreeningDataOptions = "generated",
    grid: Mapping[str, Sequence[Any]] | None = None,
    method_options: Mapping[str, Any] | None = None,
    by: str = "average_precision",
    num_folds: int = 5,
    inner_folds: int = 5,
    seed: int = SEEDS[0],
    decoys: Decoys = "unknown",
    ratio: int = 10,
    group_twins: bool = False,
    out: str | Path = "runs/screening-tune",
    jobs: int = 1,
    show_progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Tuned:
    """Search a grid of options by nested cross-validation.

    In every outer fold options are chosen by inner folds of its training pairs and then measured once on its test
    pairs: that mean is what the choice is worth. The options to use are chosen the same way on all pairs. The best
    result any fixed point of the grid has on the test folds is shown beside it: whoever tunes on the test folds reports
    that one.

    Args:
        method: Its name, see ``stillroom methods``.
        setting: What is new in a test fold: S1 pairs, S2 drugs, S3 targets, S4 both.
        data: The data set and its options.
        grid: Option -> values to try; the method's own grid unless given.
        method_options: Options that are not tried, where they differ from the defaults.
        by: The measure that chooses: average_precision, auc, precision_at_10, enrichment_1pct, bedroc or aupr, whose
            trapezoids favour options that give all pairs the same score.
        num_folds: Outer folds.
        inner_folds: Inner folds.
        seed: Seed of the folds and of the method's draws.
        decoys: What counts as negative in a test fold: unknown, measured or sampled.
        ratio: Sampled negatives for each interaction.
        group_twins: Keep drugs with identical structures and targets with identical sequences in one fold.
        out: The run directory; each outer fold is kept in its ``cells`` folder.
        jobs: Outer folds at the same time, each in a process with its share of the cores.
        show_progress: Show progress on standard error.
        resume: Keep finished outer folds of the run in ``out`` and go on.
        overwrite: Replace a finished run in ``out``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
        OutputError: A result could not be written.
    """
    check_settings([setting])
    check_measure(by)
    in_range("jobs", jobs, 1, whole=True)
    in_range("seed", seed, 0, whole=True)
    fixed = dict(method_options or {})
    points = grid_points(method, grid, fixed)
    options, interactions = prepared(data)
    new_screener(method, interactions, fixed, seed)
    twins = identical(interactions)
    outer = Counting(
        num_folds=num_folds,
        decoys=decoys,
        ratio=ratio,
        drug_groups=twins.drug_groups if group_twins else None,
        target_groups=twins.target_groups if group_twins else None,
    )
    inner = inner_counting(outer, inner_folds, interactions, [setting], [seed])
    split = outer.folds(interactions, setting, seed)
    leaks = leak_notes(leak_counts(interactions, split, twins), setting)
    config: dict[str, Any] = {
        "method": method,
        "setting": setting,
        "data": plain(options),
        "grid": plain(grid),
        "method_options": plain(fixed),
        "by": by,
        "num_folds": num_folds,
        "inner_folds": inner_folds,
        "seed": seed,
        "decoys": decoys,
        "ratio": ratio,
        "group_twins": group_twins,
        "out": str(out),
        "jobs": jobs,
    }
    keep = read_from(options)
    run = RunDirectory.create(out, config, overwrite=overwrite, resume=resume, keep=keep, may_change=MAY_CHANGE)
    search = _Search(
        method=method,
        data=interactions,
        points=points,
        options=fixed,
        setting=setting,
        seed=seed,
        outer=outer,
        inner=inner,
        by=by,
        threads=threads_each(jobs),
        out=run.path,
    )
    parts = [*range(len(split)), WHOLE]
    check_same_data(run.path, interactions)
    done = {part: kept(_file(run.path, part), dict) for part in parts if _file(run.path, part).is_file()}
    missing = [part for part in parts if part not in done]
    with progress(f"{method} {setting}, {len(points)} points", len(parts), done=len(done), show=show_progress) as tell:
        for part, found in run_jobs(partial(_part, search), missing, jobs):
            done[part] = found
            tell(len(done))
    result: dict[str, Any] = {
        "data": interactions.describe(),
        "method": method,
        "setting": setting,
        "by": by,
        "points": plain(points),
        "chosen": done[WHOLE]["options"],
        "scores": done[WHOLE]["scores"],
        "folds": [done[part] for part in range(len(split))],
        "decoys": decoys_note(decoys, ratio),
        "notes": leaks,
        "environment": environment(),
        "out": str(out),
    }
    run.write_result(result)
    command = shlex.join(["stillroom", "screening", "tune", "--config", str(run.config), "--out", "NEW_DIRECTORY"])
    write_page(run.report, tuning_page(result, config, command))
    return Tuned(tuning_table(result), points_table(result), result, run.path)


def _file(out: Path, part: int) -> Path:
    return out / "cells" / ("whole.json" if part == WHOLE else f"fold{part}.json")


def _part(search: _Search, part: int) -> dict[str, Any]:
    """Choose inside one outer fold and measure there, or choose on all pairs; write it down."""

    def searched() -> dict[str, Any]:
        with limited(search.threads):
            found: dict[str, Any] = plain(_whole(search) if part == WHOLE else _fold(search, part))
            return found

    return kept(_file(search.out, part), searched)


def _whole(search: _Search) -> dict[str, Any]:
    return vars(
        choose_options(
            search.method,
            search.data,
            search.points,
            search.setting,
            search.seed,
            search.inner,
            options=search.options,
            by=search.by,
        )
    )


def _fold(search: _Search, part: int) -> dict[str, Any]:
    fold = search.outer.folds(search.data, search.setting, search.seed)[part]
    chosen = choose_options(
        search.method,
        search.data,
        search.points,
        search.setting,
        search.seed,
        search.inner,
        options=search.options,
        within=fold,
        by=search.by,
    )

    def measured(options: Mapping[str, Any]) -> dict[str, float] | None:
        method = new_screener(search.method, search.data, {**search.options, **options}, search.seed)
        return score_fold(method, search.data, fold, search.setting, search.seed, search.outer)

    return {
        "options": chosen.options,
        "chosen": measured(chosen.options),
        "defaults": measured({}),
        # The test pairs of every point: only to show what a choice by them would claim.
        "points": [measured(point) for point in search.points],
    }
