"""Splits follow the published rule, keep what is new out of training, and are values."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.screening import protocols
from stillroom.screening._checks import Mask
from stillroom.screening.protocols import Fold, Setting, make_folds, split_hash

SETTINGS = get_args(Setting)
seeds = st.integers(0, 2**32 - 1)


def cut(units: list[int], num_folds: int, random: np.random.RandomState) -> list[list[int]]:
    """The rule, word for word: a permutation cut into steps, the last fold takes the rest."""
    order = random.permutation(len(units))
    step = len(units) // num_folds
    ends = [step * k for k in range(num_folds)] + [len(units)]
    return [[units[i] for i in order[start:end]] for start, end in itertools.pairwise(ends)]


def mask_of(shape: tuple[int, int], pairs: set[tuple[int, int]]) -> Mask:
    mask = np.zeros(shape, dtype=bool)
    for drug, target in pairs:
        mask[drug, target] = True
    return mask


def times_tested(folds: list[Fold]) -> Any:
    return sum(fold.test.astype(int) for fold in folds)


@given(seed=seeds, m=st.integers(3, 9), n=st.integers(3, 9), num_folds=st.integers(2, 3))
def test_pairs_drugs_and_targets_are_cut_by_the_published_rule(seed: int, m: int, n: int, num_folds: int) -> None:
    random = np.random.RandomState
    pairs = [{(k // n, k % n) for k in part} for part in cut(list(range(m * n)), num_folds, random(seed))]
    drugs = [{(d, t) for d in part for t in range(n)} for part in cut(list(range(m)), num_folds, random(seed))]
    targets = [{(d, t) for d in range(m) for t in part} for part in cut(list(range(n)), num_folds, random(seed))]
    cases: list[tuple[Setting, list[set[tuple[int, int]]]]] = [("S1", pairs), ("S2", drugs), ("S3", targets)]
    for setting, expected in cases:
        folds = make_folds((m, n), setting, seed=seed, num_folds=num_folds)
        assert len(folds) == num_folds
        for fold, pairs_of_fold in zip(folds, expected, strict=True):
            np.testing.assert_array_equal(fold.test, mask_of((m, n), pairs_of_fold))
            np.testing.assert_array_equal(fold.train, ~fold.test)


@given(seed=seeds, m=st.integers(3, 9), n=st.integers(3, 9))
def test_ten_folds_of_new_drugs_and_targets_are_three_by_three_blocks(seed: int, m: int, n: int) -> None:
    random = np.random.RandomState(seed)
    drug_parts = cut(list(range(m)), 3, random)
    target_parts = cut(list(range(n)), 3, random)
    blocks = [(drugs, targets) for drugs in drug_parts for targets in target_parts]
    folds = make_folds((m, n), "S4", seed=seed)
    for fold, (drugs, targets) in zip(folds, blocks, strict=True):
        others = [d for d in range(m) if d not in drugs], [t for t in range(n) if t not in targets]
        np.testing.assert_array_equal(fold.test, mask_of((m, n), {(d, t) for d in drugs for t in targets}))
        np.testing.assert_array_equal(fold.train, mask_of((m, n), {(d, t) for d in others[0] for t in others[1]}))


@given(seed=seeds, setting=st.sampled_from(SETTINGS), num_folds=st.integers(2, 5), data=st.data())
def test_every_pair_within_is_tested_once_and_what_is_new_is_never_trained_on(
    seed: int, setting: Setting, num_folds: int, data: st.DataObject
) -> None:
    shape = (9, 8)
    drugs = data.draw(st.sets(st.integers(0, 8), min_size=5))
    targets = data.draw(st.sets(st.integers(0, 7), min_size=5))
    within = mask_of(shape, {(d, t) for d in drugs for t in targets})
    folds = make_folds(shape, setting, seed=seed, num_folds=num_folds, within=within)
    np.testing.assert_array_equal(times_tested(folds), within.astype(int))
    for fold in folds:
        assert fold.train.any()
        assert not (fold.train & ~within).any()
        assert not (fold.train & fold.test).any()
        if setting in ("S2", "S4"):
            assert not fold.train[fold.test.any(axis=1)].any()
        if setting in ("S3", "S4"):
            assert not fold.train[:, fold.test.any(axis=0)].any()
        if setting != "S4":
            np.testing.assert_array_equal(fold.train | fold.test, within)


@given(seed=seeds, setting=st.sampled_from(("S1", "S2", "S3")), mask_seed=st.integers(0, 999))
def test_inside_a_scattered_mask_only_drugs_and_targets_it_holds_are_units(
    seed: int, setting: Setting, mask_seed: int
) -> None:
    within = np.random.default_rng(mask_seed).random((8, 7)) < 0.3
    within[0, 0] = within[1, 1] = True
    folds = make_folds(within.shape, setting, seed=seed, num_folds=2, within=within)
    np.testing.assert_array_equal(times_tested(folds), within.astype(int))
    units = {"S1": within, "S2": within.any(axis=1), "S3": within.any(axis=0)}[setting].sum()
    axis = {"S1": None, "S2": 1, "S3": 0}[setting]
    first = folds[0].test if axis is None else folds[0].test.any(axis=axis)
    assert first.sum() == units // 2


@given(
    seed=seeds, setting=st.sampled_from(SETTINGS), drugs=st.permutations(range(9)), targets=st.permutations(range(8))
)
def test_all_pairs_within_and_groups_of_one_change_nothing(
    seed: int, setting: Setting, drugs: list[int], targets: list[int]
) -> None:
    plain = make_folds((9, 8), setting, seed=seed, num_folds=4)
    grouped = make_folds(
        (9, 8),
        setting,
        seed=seed,
        num_folds=4,
        within=np.ones((9, 8), dtype=bool),
        drug_groups=np.array(drugs),
        target_groups=np.array(targets),
    )
    assert split_hash(plain) == split_hash(grouped)


@given(
    seed=seeds,
    setting=st.sampled_from(SETTINGS),
    drugs=st.lists(st.integers(-3, 9), min_size=9, max_size=9).filter(lambda groups: len(set(groups)) >= 2),
    targets=st.lists(st.integers(-3, 9), min_size=8, max_size=8).filter(lambda groups: len(set(groups)) >= 2),
)
def test_members_of_a_group_are_tested_together(
    seed: int, setting: Setting, drugs: list[int], targets: list[int]
) -> None:
    folds = make_folds(
        (9, 8), setting, seed=seed, num_folds=2, drug_groups=np.array(drugs), target_groups=np.array(targets)
    )
    np.testing.assert_array_equal(times_tested(folds), 1)
    for fold in folds:
        for group in set(drugs):
            for other in set(targets):
                cell = np.ix_(np.array(drugs) == group, np.array(targets) == other)
                assert fold.test[cell].all() or not fold.test[cell].any()
        if setting in ("S2", "S4"):
            rows = fold.test.any(axis=1)
            assert not set(np.array(drugs)[rows]) & set(np.array(drugs)[fold.train.any(axis=1)])
        if setting in ("S3", "S4"):
            columns = fold.test.any(axis=0)
            assert not set(np.array(targets)[columns]) & set(np.array(targets)[fold.train.any(axis=0)])


HOLED = np.outer([1, 1, 1, 0, 0], [1, 1, 1, 0])  # three drugs, three targets, and one pair of them missing
HOLED[1, 1] = 0


@pytest.mark.parametrize(
    ("setting", "given", "words"),
    [
        ("S5", {}, "unknown setting 'S5'"),
        ("S1", {"num_folds": 1}, "num_folds is 1"),
        ("S1", {"num_folds": 2.0}, "num_folds is 2.0"),
        ("S1", {"seed": -1}, "seed is -1"),
        ("S1", {"num_folds": 21}, "20 pairs that differ cannot be split into 21 parts"),
        ("S2", {"num_folds": 6}, "5 drugs that differ cannot be split into 6 parts"),
        ("S3", {"num_folds": 5}, "4 targets that differ cannot be split into 5 parts"),
        ("S4", {"num_folds": 25}, "4 targets that differ cannot be split into 5 parts"),
        ("S2", {"drug_groups": np.zeros(5, dtype=int)}, "1 drugs that differ"),
        ("S2", {"drug_groups": np.zeros(4, dtype=int)}, "drug_groups must be 5 whole numbers"),
        ("S2", {"target_groups": np.zeros(4)}, "target_groups must be 4 whole numbers"),
        ("S1", {"within": np.ones((4, 5), dtype=bool)}, r"within has shape \[4, 5\]; it must be \[5, 4\]"),
        ("S1", {"within": np.full((5, 4), 2)}, "something else than true and false"),
        ("S4", {"within": np.eye(5, 4)[[0, 1, 4, 4, 4]]}, "fold 0 of S4 has no pair to train on; use fewer folds"),
        ("S4", {"within": HOLED, "num_folds": 9}, "of S4 has no pair to test; use fewer folds or more pairs"),
        ("S1", {"within": np.zeros((5, 4), dtype=bool)}, "0 pairs that differ"),
    ],
)
def test_an_impossible_split_is_refused(setting: Setting, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make_folds((5, 4), setting, **{"seed": 22, "num_folds": 2, **given})
    assert "\n" not in str(caught.value)


def test_an_empty_shape_is_refused() -> None:
    with pytest.raises(InputError, match="number of targets is 0"):
        make_folds((5, 0), "S1", seed=22)


def test_a_fold_that_tests_what_it_trains_on_is_refused() -> None:
    train = np.eye(2, dtype=bool)
    with pytest.raises(InputError, match=r"drug 1 and target 1 .* in train and in test"):
        Fold(train=train, test=mask_of((2, 2), {(1, 1)}))
    with pytest.raises(InputError, match=r"trains on \[2, 2\] pairs and tests \[3, 2\]"):
        Fold(train=train, test=np.zeros((3, 2), dtype=bool))
    with pytest.raises(InputError, match="booleans"):
        Fold(train=train, test=np.zeros((2, 2)))  # type: ignore[arg-type]


def test_the_hash_sees_every_pair_the_order_of_folds_and_the_shape() -> None:
    folds = make_folds((5, 4), "S4", seed=22, num_folds=4)
    hashes = {split_hash(folds), split_hash(folds[::-1]), split_hash(folds[:-1])}
    for drug, target in np.ndindex(5, 4):
        train = folds[0].train.copy()
        train[drug, target] ^= True
        if not folds[0].test[drug, target]:
            hashes.add(split_hash([Fold(train=train, test=folds[0].test), *folds[1:]]))
    assert len(hashes) == 3 + 20 - folds[0].test.sum()
    wide, tall = (Fold(train=np.ones(s, dtype=bool), test=np.zeros(s, dtype=bool)) for s in ((2, 3), (3, 2)))
    assert split_hash([wide]) != split_hash([tall])


LABELS = (np.random.default_rng(3).random((12, 10)) < 0.1).astype(float)
FOLD = make_folds(LABELS.shape, "S2", seed=22, num_folds=3)[0]


def test_every_test_pair_counts_where_unknown_ones_are_the_negatives() -> None:
    counted = protocols.counted_pairs(FOLD, LABELS, None, decoys="unknown", seed=22)
    np.testing.assert_array_equal(counted, FOLD.test)
    counted[:] = False
    assert FOLD.test.any()  # what is returned is the caller's


def test_only_measured_pairs_count_where_asked() -> None:
    measured = (LABELS == 1) | (np.random.default_rng(4).random(LABELS.shape) < 0.3)
    counted = protocols.counted_pairs(FOLD, LABELS, measured, decoys="measured", seed=22)
    np.testing.assert_array_equal(counted, FOLD.test & measured)
    with pytest.raises(InputError, match="decoys=measured needs data that says which pairs were measured"):
        protocols.counted_pairs(FOLD, LABELS, None, decoys="measured", seed=22)


@given(ratio=st.integers(1, 30), seed=seeds)
def test_so_many_unknown_pairs_are_drawn_for_each_interaction_or_all_there_are(ratio: int, seed: int) -> None:
    counted = protocols.counted_pairs(FOLD, LABELS, None, decoys="sampled", ratio=ratio, seed=seed)
    positives = FOLD.test & (LABELS == 1)
    assert positives.any()
    assert not (counted & ~FOLD.test).any()
    assert not (positives & ~counted).any()
    negatives = int((FOLD.test & (LABELS == 0)).sum())
    assert (counted & ~positives).sum() == min(ratio * positives.sum(), negatives)
    again = protocols.counted_pairs(FOLD, LABELS, None, decoys="sampled", ratio=ratio, seed=seed)
    np.testing.assert_array_equal(counted, again)


def test_another_seed_draws_other_pairs() -> None:
    draws = [protocols.counted_pairs(FOLD, LABELS, None, decoys="sampled", ratio=1, seed=seed) for seed in range(4)]
    assert any((draw != draws[0]).any() for draw in draws)


def test_wrong_options_of_counting_are_refused() -> None:
    with pytest.raises(InputError, match="unknown decoys 'sample'; did you mean 'sampled'"):
        protocols.counted_pairs(FOLD, LABELS, None, decoys="sample", seed=22)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ratio is 0"):
        protocols.counted_pairs(FOLD, LABELS, None, decoys="sampled", ratio=0, seed=22)
    with pytest.raises(InputError, match=r"labels has shape \[10, 12\]"):
        protocols.counted_pairs(FOLD, LABELS.T, None, decoys="unknown", seed=22)
    with pytest.raises(InputError, match=r"measured has shape \[10, 12\]"):
        protocols.counted_pairs(FOLD, LABELS, LABELS.T == 1, decoys="measured", seed=22)
