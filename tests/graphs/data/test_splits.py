"""Random splits are balanced, disjoint, and leave unknown nodes out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.graphs.splits import random_split


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(-1, 3), min_size=1, max_size=60),
    per_class=st.integers(1, 5),
    val=st.integers(0, 8),
    test=st.integers(0, 8),
    seed=st.integers(0, 99),
)
def test_a_split_has_the_sizes_asked_for_or_says_why_not(
    labels: list[int], per_class: int, val: int, test: int, seed: int
) -> None:
    y = torch.tensor(labels)
    counts = torch.bincount(y[y >= 0])
    present = counts[counts > 0]
    fits = bool((present >= per_class).all()) and int(present.sum()) - per_class * len(present) >= val + test
    if not fits:
        with pytest.raises(InputError, match=r"lower data\."):
            random_split(y, per_class=per_class, val=val, test=test, generator=stream(seed))
        return
    masks = random_split(y, per_class=per_class, val=val, test=test, generator=stream(seed))
    assert torch.bincount(y[masks[0]], minlength=len(counts)).tolist() == [
        per_class if n else 0 for n in counts.tolist()
    ]
    assert [int(mask.sum()) for mask in masks[1:]] == [val, test]
    assert int(sum(mask.long() for mask in masks).max()) <= 1
    assert not any(bool(mask[y < 0].any()) for mask in masks)
    again = random_split(y, per_class=per_class, val=0, test=val, generator=stream(seed))
    assert torch.equal(again[0], masks[0])


def test_with_several_labels_a_node_the_number_is_kept() -> None:
    masks = random_split(torch.ones(50, 3), per_class=4, val=10, test=20, generator=stream(0))
    assert [int(mask.sum()) for mask in masks] == [12, 10, 20]
    with pytest.raises(InputError, match="38 labelled nodes are left beside 12 training nodes"):
        random_split(torch.ones(50, 3), per_class=4, val=20, test=20, generator=stream(0))


def test_the_scarce_class_is_named() -> None:
    with pytest.raises(InputError, match="takes 3 training nodes of every class, but class 1 has 2 labelled nodes"):
        random_split(torch.tensor([0, 0, 0, 0, 1, 1, -1]), per_class=3, val=1, test=1, generator=stream(0))
