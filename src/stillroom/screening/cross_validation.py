"""Cross-validation of one method under one setting, with nested choice of its options inside the training folds."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import InputError, unknown_name
from stillroom.hyperparameters import make_method, method_defaults
from stillroom.screening._checks import in_range, one_of
from stillroom.screening.estimators._screener import Grid, Screener
from stillroom.screening.interactions import Interactions
from stillroom.screening.methods import method_class
from stillroom.screening.metrics import measure
from stillroom.screening.protocols import Decoys, Fold, Setting, counted_pairs, make_folds

__all__ = [
    "MEASURES",
    "SEEDS",
    "Choice",
    "Counting",
    "check_measure",
    "choose_options",
    "cross_validate",
    "grid_points",
    "inner_counting",
    "new_screener",
    "score_fold",
]

SEEDS = (7771, 8367, 22, 1812, 4659)  # of the published comparisons
MEASURES = ("auc", "aupr", "average_precision", "precision_at_10", "enrichment_1pct", "bedroc")


@dataclass(frozen=True, kw_only=True)
class Counting:
    """How folds are made and which test pairs count.

    Args:
        num_folds: Folds of one repetition.
        decoys: What counts as negative in a test fold: unknown takes all pairs not known to interact, measured only
            those measured as inactive, sampled ``ratio`` unknown pairs for each interaction.
        ratio: Sampled negatives for each interaction.
        drug_groups: [m], drugs with the same number stay in one fold.
        target_groups: [n], the same for targets.
    """

    num_folds: int = 10
    decoys: Decoys = "unknown"
    ratio: int = 10
    drug_groups: NDArray[np.intp] | None = None
    target_groups: NDArray[np.intp] | None = None

    def __post_init__(self) -> None:
        """Refuse values no data could honour."""
        one_of("decoys", self.decoys, get_args(Decoys))
        in_range("ratio", self.ratio, 1, whole=True)

    def folds(self, data: Interactions, setting: Setting, seed: int, within: Fold | None = None) -> list[Fold]:
        """Return the folds of a repetition, or those inside the training pairs of one of its folds."""
        if self.decoys == "measured" and data.measured is None:
            raise InputError("decoys=measured needs data that says which pairs were measured; use unknown or sampled")
        return make_folds(
            data.shape,
            setting,
            seed=seed,
            num_folds=self.num_folds,
            within=None if within is None else within.train,
            drug_groups=self.drug_groups,
            target_groups=self.target_groups,
        )

    def observed(self, data: Interactions, fold: Fold) -> NDArray[np.bool_]:
        """Return the pairs a method may see: where only measured ones count, the others are unknown in training too."""
        if self.decoys == "measured" and data.measured is not None:
            return fold.train & data.measured
        return fold.train


def inner_counting(
    outer: Counting, inner_folds: int, data: Interactions, settings: Sequence[Setting], seeds: Sequence[int]
) -> Counting:
    """Return how the folds of a choice inside the training pairs are made, checked before anything is measured.

    Raises:
        InputError: The training pairs of an outer fold cannot be split into so many.
    """
    in_range("inner_folds", inner_folds, 2, whole=True)
    inner = replace(outer, num_folds=inner_folds)
    for setting in settings:
        for seed in seeds:
            last = outer.folds(data, setting, seed)[-1]  # it tests the most pairs, and so trains on the fewest
            try:
                inner.folds(data, setting, seed, last)
            except InputError as error:
                raise InputError(f"inner_folds is {inner_folds}: {error}") from None
    return inner


@dataclass(frozen=True)
class Choice:
    """What an inner cross-validation chose, and the score of every point of the grid (NaN where none was possible)."""

    options: dict[str, Any]
    scores: list[float] = field(default_factory=list)


def new_screener(name: str, data: Interactions, options: Mapping[str, Any], seed: int) -> Screener:
    """Return a method for the data's similarities, its draws seeded unless the options say how.

    Raises:
        InputError: There is no such method or option, or an option cannot have that value.
    """
    kind = method_class(name)
    seeded = {"random_state": seed} if "random_state" in method_defaults(kind) else {}
    method = make_method(kind, name, {**seeded, **options})
    method.check_options()
    method.drug_similarity, method.target_similarity = data.drug_similarity, data.target_similarity
    return method


def score_fold(
    method: Screener, data: Interactions, fold: Fold, setting: Setting, seed: int, counting: Counting
) -> dict[str, float] | None:
    """Fit on the training pairs of a fold and measure its test pairs.

    Returns:
        The measures, and ``constant``, 1 where all scores are the same; nothing where the test pairs hold no
        interaction or no negative, or the training pairs no interaction.
    """
    observed = counting.observed(data, fold)
    counted = counted_pairs(fold, data.labels, data.measured, decoys=counting.decoys, ratio=counting.ratio, seed=seed)
    if not (data.labels * observed).any():
        return None
    pairs = np.argwhere(counted)
    labels = data.labels[counted]
    if not labels.any() or labels.all():
        return None
    method.fit_matrix(data.labels, observed)
    scores = method.score_pairs(pairs)
    found = measure(labels, scores)
    return None if found is None else {**found, "constant": float(scores.min() == scores.max())}


def check_measure(by: str) -> None:
    """Refuse a measure that does not exist.

    Raises:
        InputError: There is no such one.
    """
    one_of("measure", by, MEASURES)


def grid_points(name: str, grid: Grid | None = None, fixed: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return every combination of a grid's values.

    Args:
        name: The method.
        grid: Option -> values to try; the method's own grid, without fixed options, unless given.
        fixed: Options that have one value.

    Raises:
        InputError: The grid names an option the method does not have, a fixed one, or no value for one.
    """
    kind = method_class(name)
    if grid is None:
        grid = {option: tried for option, tried in kind.grid.items() if option not in fixed}
    values = dict(grid)
    for option, tried in values.items():
        if option not in method_defaults(kind):
            raise unknown_name(f"option of {name} in the grid", option, method_defaults(kind))
        if option in fixed:
            raise InputError(f"{option} is in the grid and in method_options; name it once")
        if isinstance(tried, str) or not isinstance(tried, Sequence) or not tried:
            raise InputError(f"grid of {name}: {option} needs a list of values to try, not {tried!r}")
    points: list[dict[str, Any]] = [{}]
    for option, tried in values.items():
        points = [{**point, option: value} for point in points for value in tried]
    for point in points:
        make_method(kind, name, point).check_options()
    return points


def choose_options(
    name: str,
    data: Interactions,
    points: Sequence[Mapping[str, Any]],
    setting: Setting,
    seed: int,
    counting: Counting,
    *,
    options: Mapping[str, Any] | None = None,
    within: Fold | None = None,
    by: str = "average_precision",
) -> Choice:
    """Choose a point of a grid by cross-validation under the same setting, inside the training pairs of a fold.

    Args:
        name: The method.
        data: All labels; only those in ``within.train`` are looked at.
        points: Options to try.
        setting: What is new in a test fold.
        seed: Of the inner folds and of the method's draws.
        counting: How the inner folds are made and counted.
        options: Options that are not tried.
        within: The outer fold; without it everything may be seen.
        by: The measure that decides. Not ``aupr``, unless all methods tell pairs apart: where all scores are the same,
            trapezoids make it one half and more.

    Returns:
        The best point with the other options; the first one where no inner fold can be measured.
    """
    check_measure(by)
    folds = counting.folds(data, setting, seed, within)
    scores = []
    for point in points:
        method = new_screener(name, data, {**(options or {}), **point}, seed)
        found = [score_fold(method, data, fold, setting, seed, counting) for fold in folds]
        measured = [each[by] for each in found if each is not None]
        scores.append(float(np.mean(measured)) if measured else float("nan"))
    best = 0 if np.isnan(scores).all() else int(np.nanargmax(scores))
    return Choice({**(options or {}), **points[best]}, scores)


def cross_validate(
    name: str,
    data: Interactions,
    setting: Setting = "S1",
    seed: int = SEEDS[0],
    *,
    options: Mapping[str, Any] | None = None,
    counting: Counting | None = None,
    tuned: Sequence[Mapping[str, Any]] | None = None,
    inner: Counting | None = None,
    by: str = "average_precision",
    tick: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Measure a method in every fold of one repetition.

    Args:
        name: The method, see ``stillroom methods``.
        data: With both similarities.
        setting: What is new in a test fold: S1 pairs, S2 drugs, S3 targets, S4 both.
        seed: Of the folds and of the method's draws.
        options: The method's options, where they differ from the defaults.
        counting: How folds are made and which test pairs count.
        tuned: Points of a grid to choose from, fold by fold, inside its training pairs.
        inner: How the inner folds are made and counted; five folds like the outer ones unless given.
        by: The measure that chooses.
        tick: Told how many folds are done, after each.

    Returns:
        ``folds``, the measures of each fold that could be measured; ``skipped``, the number of others; ``chosen``, the
        options each of these folds was fitted with where they were chosen; ``seconds``.

    Raises:
        InputError: Something handed over is wrong; the message names it and the mend.
    """
    started = time.monotonic()
    measured: list[dict[str, float]] = []
    chosen: list[dict[str, Any]] = []
    skipped = 0
    counting = counting or Counting()
    inner = inner or replace(counting, num_folds=5)
    for number, fold in enumerate(counting.folds(data, setting, seed), 1):
        own = dict(options or {})
        if tuned is not None:
            own = choose_options(name, data, tuned, setting, seed, inner, options=options, within=fold, by=by).options
        found = score_fold(new_screener(name, data, own, seed), data, fold, setting, seed, counting)
        if found is None:
            skipped += 1
        else:
            measured.append(found)
            chosen.append(own)
        if tick is not None:
            tick(number)
    return {
        "folds": measured,
        "skipped": skipped,
        "chosen": chosen if tuned is not None else [],
        "seconds": time.monotonic() - started,
    }
