"""Protocols of evaluation: which pairs are trained on, which are tested, and which of these are counted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import InputError
from stillroom.screening._checks import Array, Mask, checked_labels, checked_mask, in_range, one_of

__all__ = ["Decoys", "Fold", "Setting", "counted_pairs", "make_folds", "split_hash"]

Setting = Literal["S1", "S2", "S3", "S4"]  # new: pairs, drugs, targets, drugs with targets
Decoys = Literal["unknown", "measured", "sampled"]


@dataclass(frozen=True, eq=False)
class Fold:
    """Which pairs are trained on and which are tested; a pair may be neither.

    Args:
        train: [drugs, targets].
        test: [drugs, targets].

    Raises:
        InputError: They are no masks of one shape, or share a pair.
    """

    train: Mask
    test: Mask

    def __post_init__(self) -> None:
        """Refuse a split that would test what it has trained on."""
        if self.train.dtype != bool or self.test.dtype != bool or self.train.ndim != 2:
            raise InputError("train and test of a fold must be booleans [drugs, targets]")
        if self.train.shape != self.test.shape:
            raise InputError(f"a fold trains on {list(self.train.shape)} pairs and tests {list(self.test.shape)}")
        shared = np.argwhere(self.train & self.test)
        if len(shared):
            drug, target = shared[0]
            raise InputError(f"drug {drug} and target {target} (counted from 0) are in train and in test; keep one")


def make_folds(
    shape: tuple[int, int],
    setting: Setting,
    *,
    seed: int,
    num_folds: int = 10,
    within: Mask | None = None,
    drug_groups: NDArray[Any] | None = None,
    target_groups: NDArray[Any] | None = None,
) -> list[Fold]:
    """Split pairs for cross-validation.

    The rule of the field's public code (PyDTI): N units are permuted by ``numpy.random.RandomState(seed)`` and cut into
    steps of ``N // num_folds``, the last fold takes the rest. Units are pairs, in the order ``drug * n + target``, in
    S1; drugs, with all their pairs, in S2; targets in S3. S3 tests whole columns: the data is not transposed. The four
    settings and S4's blocks are those of T. Pahikkala et al., "Toward more realistic drug-target interaction
    predictions", Briefings in Bioinformatics 16(2), 2015: in S4 the drugs and then the targets are cut into
    ``max(2, round(sqrt(num_folds)))`` parts each, 3 x 3 for 10 folds. Every block is tested once; the pairs of its
    drugs with other targets, and of its targets with other drugs, are in neither train nor test.

    The drugs and targets of S1's test pairs are met in training: S1 overstates what is known of new ones.

    Args:
        shape: Number of drugs and of targets.
        setting: S1, S2, S3 or S4.
        seed: Of the permutations.
        num_folds: How many folds; in S4 the square of its parts.
        within: Pairs that may be in train or test, for tuning inside a training fold, [m, n]; all unless given. Drugs
            and targets without such a pair are no units.
        drug_groups: A number for each drug, [m]; drugs with the same one, identical structures say, stay in the same
            fold. In S1 they join pairs: those of one group of drugs and one group of targets stay together.
        target_groups: The same for targets, [n].

    Returns:
        The folds. Every pair of ``within`` is tested once.

    Raises:
        InputError: The setting is unknown, an option is out of range or of another shape, there are fewer units than
            folds, or a fold would have nothing to train on or nothing to test.

    Example:
        >>> folds = make_folds((6, 4), "S2", seed=7771, num_folds=3)
        >>> [np.flatnonzero(fold.test.any(axis=1)).tolist() for fold in folds]
        [[0, 4], [3, 5], [1, 2]]
    """
    one_of("setting", setting, get_args(Setting))
    in_range("seed", seed, 0, 2**32 - 1, whole=True)
    in_range("num_folds", num_folds, 2, whole=True)
    for name, size in zip(("number of drugs", "number of targets"), shape, strict=True):
        in_range(name, size, 1, whole=True)
    usable = checked_mask(within, shape, "within")
    drugs, targets = _numbers("drug", drug_groups, shape[0]), _numbers("target", target_groups, shape[1])
    usable_drugs, usable_targets = np.asarray(usable.any(axis=1)), np.asarray(usable.any(axis=0))
    random = np.random.RandomState(seed)

    if setting == "S4":
        side = max(2, round(num_folds**0.5))
        drug_parts = _parts("drugs", drugs, usable_drugs, side, random)[:, None]
        target_parts = _parts("targets", targets, usable_targets, side, random)[None, :]
        folds = [
            Fold(
                train=usable & (drug_parts != drug) & (target_parts != target),
                test=usable & (drug_parts == drug) & (target_parts == target),
            )
            for drug in range(side)
            for target in range(side)
        ]
    else:
        if setting == "S1":
            cells = drugs[:, None] * (targets.max() + 1) + targets[None, :]
            parts = _parts("pairs", cells, usable, num_folds, random)
        elif setting == "S2":
            parts = _parts("drugs", drugs, usable_drugs, num_folds, random)[:, None]
        else:
            parts = _parts("targets", targets, usable_targets, num_folds, random)[None, :]
        folds = [Fold(train=usable & (parts != k), test=usable & (parts == k)) for k in range(num_folds)]

    for number, fold in enumerate(folds):
        for use, mask in (("train on", fold.train), ("test", fold.test)):
            if not mask.any():
                raise InputError(f"fold {number} of {setting} has no pair to {use}; use fewer folds or more pairs")
    return folds


def split_hash(folds: Sequence[Fold]) -> str:
    """Return the SHA-256 of a split, in hexadecimal digits: equal splits, and only these, have the same.

    Example:
        >>> first, again = (make_folds((4, 3), "S1", seed=22, num_folds=2) for _ in range(2))
        >>> split_hash(first) == split_hash(again), split_hash(first) == split_hash(first[::-1])
        (True, False)
    """
    digest = hashlib.sha256()
    for fold in folds:
        digest.update(repr(fold.test.shape).encode())  # packed bits do not tell 2 x 3 from 3 x 2
        digest.update(np.packbits(fold.train).tobytes())
        digest.update(np.packbits(fold.test).tobytes())
    return digest.hexdigest()


def counted_pairs(
    fold: Fold,
    labels: Array,
    measured: Mask | None,
    *,
    decoys: Decoys,
    ratio: int = 10,
    seed: int,
) -> Mask:
    """Return which test pairs of a fold are counted: the interactions, and those that stand for negatives.

    Args:
        fold: Train and test.
        labels: 1 for pairs known to interact, [m, n].
        measured: Pairs whose label comes from a measurement, [m, n].
        decoys: What counts as a negative. unknown: every pair not known to interact, as in the literature; measured:
            only those measured; sampled: ``ratio`` times as many pairs labelled 0 as the fold has interactions, drawn
            without replacement, or all where there are fewer.
        ratio: Negatives drawn for each interaction.
        seed: Of the drawing.

    Returns:
        Pairs of ``fold.test``, [m, n].

    Raises:
        InputError: An option is out of range, shapes differ, or nothing says what was measured.

    Example:
        >>> fold = Fold(train=np.array([[True, False, False]]), test=np.array([[False, True, True]]))
        >>> counted_pairs(fold, np.array([[0, 1, 0]]), None, decoys="unknown", seed=22).tolist()
        [[False, True, True]]
    """
    one_of("decoys", decoys, get_args(Decoys))
    in_range("ratio", ratio, 1, whole=True)
    in_range("seed", seed, 0, whole=True)
    shape = (fold.test.shape[0], fold.test.shape[1])
    known = checked_mask(checked_labels(labels), shape, "labels")
    if decoys == "unknown":
        return fold.test.copy()
    if decoys == "measured":
        if measured is None:
            raise InputError("decoys=measured needs data that says which pairs were measured; use unknown or sampled")
        return fold.test & checked_mask(measured, shape, "measured")
    counted = fold.test & known
    zeros = np.flatnonzero(fold.test & ~known)
    wanted = min(ratio * int(counted.sum()), len(zeros))
    counted.flat[np.random.default_rng(seed).choice(zeros, size=wanted, replace=False)] = True
    return counted


def _numbers(kind: str, groups: NDArray[Any] | None, size: int) -> NDArray[np.intp]:
    """Return the group of each, numbered from 0."""
    if groups is None:
        return np.arange(size)
    values = np.asarray(groups)
    if values.shape != (size,) or values.dtype.kind not in "iu":
        raise InputError(f"{kind}_groups must be {size} whole numbers, one for each {kind}")
    numbers: NDArray[np.intp] = np.unique(values, return_inverse=True)[1]
    return numbers


def _parts(
    what: str, groups: NDArray[np.intp], usable: Mask, count: int, random: np.random.RandomState
) -> NDArray[np.intp]:
    """Return the part, 0..count - 1, that each drug, target or pair falls in; -1 where it is not usable."""
    _, first, unit = np.unique(groups[usable], return_index=True, return_inverse=True)
    number = len(first)
    step = number // count
    if step == 0:
        raise InputError(f"{number} {what} that differ cannot be split into {count} parts; use fewer folds")
    # Units count in the order in which they appear, so that groups of one give the split of no groups.
    position = np.argsort(random.permutation(number))
    appearance = np.argsort(np.argsort(first))
    parts = np.full(groups.shape, -1)
    parts[usable] = np.minimum(position[appearance[unit]] // step, count - 1)
    return parts
