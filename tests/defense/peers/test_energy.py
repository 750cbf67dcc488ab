from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defense.peers.asked import ask
from stillroom.defense.energy import Energy, energies
from stillroom.defense.windows import MemoryWindows
from stillroom.errors import InputError


@given(st.integers(0, 99), st.integers(1, 6), st.lists(st.integers(1, 19), max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_score_is_the_mean_of_the_last_energies_however_requests_are_cut(
    seed: int, size: int, cuts: list[int]
) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (20, 5))
    detector = Energy(MemoryWindows(size, dtype=np.float64))
    edges = [0, *sorted(set(cuts)), 20]
    scores = np.concatenate([detector.watch(ask(logits[start:end])) for start, end in pairwise(edges)])
    own = -np.log(np.exp(logits).sum(1))
    expected = [np.nan if end < size else own[end - size : end].mean() for end in range(1, 21)]
    np.testing.assert_allclose(scores, expected, rtol=1e-12)


def test_a_young_account_is_scored_when_asked_for() -> None:
    detector = Energy(MemoryWindows(4, dtype=np.float64), min_queries=2)
    scores = detector.watch(ask(np.zeros((3, 2))))
    np.testing.assert_allclose(scores, [np.nan, -np.log(2), -np.log(2)])


def test_unsure_answers_score_higher_than_sure_ones() -> None:
    detector = Energy(MemoryWindows(2))
    sure = detector.watch(ask(np.array([[9.0, 0, 0]] * 2), account="ada"))
    unsure = detector.watch(ask(np.array([[1.0, 0, 0]] * 2)))
    assert unsure[-1] > sure[-1]


def test_huge_logits_neither_overflow_nor_lose_the_sum() -> None:
    np.testing.assert_allclose(energies(np.array([[1e4, 1e4], [-1e4, -1e4]])), [-1e4 - np.log(2), 1e4 - np.log(2)])


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="a logit is not finite"):
        Energy(MemoryWindows(2)).watch(ask(np.array([[0.0, np.nan]])))


@pytest.mark.parametrize("min_queries", [0, 5])
def test_a_minimum_outside_the_window_is_refused(min_queries: int) -> None:
    with pytest.raises(InputError, match=f"min_queries is {min_queries}; it must lie in 1..4"):
        Energy(MemoryWindows(4), min_queries=min_queries)


def test_detectors_and_plain_perturbations_do_not_import_torch() -> None:
    names = ["prada", "energy", "reverse_sigmoid", "noise", "labels_only", "mad"]
    code = f"import sys, {', '.join('stillroom.defense.' + name for name in names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
