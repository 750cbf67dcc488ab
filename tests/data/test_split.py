"""Class-balanced subsets: properties over random label vectors."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.data.split import per_class_share, random_stream, set_aside, subset_per_class

CLASSES = 4
targets = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=60).map(torch.tensor)
seeds = st.integers(0, 1000)


def counts(target: Tensor) -> list[int]:
    return torch.bincount(target, minlength=CLASSES).tolist()


@settings(deadline=None)
@given(targets, st.lists(st.integers(0, 20), min_size=CLASSES, max_size=CLASSES), seeds)
def test_a_subset_has_the_quota_of_every_class_and_partitions_the_set(
    target: Tensor, quota: list[int], seed: int
) -> None:
    drawn, rest = subset_per_class(target, torch.tensor(quota), random_stream(seed))
    assert sorted([*drawn.tolist(), *rest.tolist()]) == list(range(len(target)))
    assert counts(target[drawn]) == [min(q, n) for q, n in zip(quota, counts(target), strict=True)]
    assert drawn.tolist() == sorted(drawn.tolist())


@settings(deadline=None)
@given(targets, seeds, st.integers(0, 5), st.integers(0, 5))
def test_a_smaller_quota_draws_a_part_of_what_a_larger_one_draws(
    target: Tensor, seed: int, few: int, more: int
) -> None:
    small, _ = subset_per_class(target, torch.full((CLASSES,), few), random_stream(seed))
    large, _ = subset_per_class(target, torch.full((CLASSES,), few + more), random_stream(seed))
    assert set(small.tolist()) <= set(large.tolist())


@settings(deadline=None)
@given(targets, st.floats(0.0, 1.0))
def test_a_share_is_within_half_an_image_of_the_exact_one(target: Tensor, share: float) -> None:
    for wanted, available in zip(per_class_share(target, CLASSES, share).tolist(), counts(target), strict=True):
        assert abs(wanted - share * available) <= 0.5


@settings(deadline=None)
@given(targets, st.floats(0.0, 0.99), seeds)
def test_setting_aside_leaves_every_class_at_least_one_image(target: Tensor, share: float, seed: int) -> None:
    kept, aside = set_aside(target, CLASSES, share, random_stream(seed))
    assert sorted([*kept.tolist(), *aside.tolist()]) == list(range(len(target)))
    assert all(left >= min(1, all_) for left, all_ in zip(counts(target[kept]), counts(target), strict=True))


def test_random_streams_differ_in_every_part_of_the_key() -> None:
    draws = {
        tuple(torch.randint(2**31, (4,), generator=random_stream(*key)).tolist()) for key in [(0, 1), (1, 0), (0,)]
    }
    assert len(draws) == 3


def test_different_seeds_draw_different_subsets() -> None:
    target = torch.arange(4).repeat(50)
    quota = torch.full((4,), 10)
    first, again, other = (subset_per_class(target, quota, random_stream(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
