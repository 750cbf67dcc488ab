"""What holds for every defence that alters answers, and what each promises of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from defense.peers.asked import SECRET, ask
from stillroom.defense.adaptive_misinformation import AdaptiveMisinformation
from stillroom.defense.contracts import Defence, softmax
from stillroom.defense.edm import EDM
from stillroom.defense.labels_only import Rounding, TopK, rounded, top_k
from stillroom.defense.mad import MAD
from stillroom.defense.noise import (
    GaussianNoise,
    LogitNoise,
    gaussian_noise,
    logit_noise,
    project_to_ball,
    uniform_from_normal,
)
from stillroom.defense.poison import KeyedPoison, fresh_poison
from stillroom.defense.reverse_sigmoid import ReverseSigmoid, reverse_sigmoid
from stillroom.errors import InputError

KEYED = KeyedPoison(SECRET)


def other(images: Any) -> Any:
    """Stand for another network: logits that follow from the image's first pixels."""
    return images.reshape(len(images), -1)[:, :6].astype(np.float64) / 32


DEFENCES: dict[str, Callable[[], Defence]] = {
    "reverse_sigmoid": ReverseSigmoid,
    "reverse_sigmoid_strong": lambda: ReverseSigmoid(beta=5.0, gamma=1.0),
    "gaussian_noise": lambda: GaussianNoise(KEYED, sigma=0.5),
    "logit_noise": lambda: LogitNoise(KEYED, epsilon=3.0),
    "logit_noise_l1": lambda: LogitNoise(KEYED, epsilon=3.0, norm="l1", distribution="normal"),
    "top_k": TopK,
    "rounding": lambda: Rounding(decimals=1),
    "mad": lambda: MAD(other),
    "mad_argmax": lambda: MAD(other, oracle="argmax", objective="angular", distance="l2"),
    "mad_argmin": lambda: MAD(other, oracle="argmin"),
    "adaptive_misinformation": lambda: AdaptiveMisinformation(other, tau=0.6),
    "edm": lambda: EDM([other, lambda images: -other(images)], secret=SECRET),
}
LOGITS = arrays(np.float32, (3, 6), elements=st.floats(-1000, 1000, width=32))


@pytest.mark.parametrize("name", DEFENCES)
@given(LOGITS)
@settings(max_examples=25, deadline=None)
def test_an_answer_is_a_distribution_whatever_the_logits(name: str, logits: Any) -> None:
    answers = DEFENCES[name]().answer(ask(logits))
    assert np.isfinite(answers.probabilities).all()
    assert (answers.probabilities >= 0).all()
    np.testing.assert_allclose(answers.probabilities.sum(1), 1, atol=1e-9)
    assert answers.probabilities.dtype == np.float64
    assert answers.altered.dtype == bool
    assert np.isnan(answers.scores).all()


@pytest.mark.parametrize("name", DEFENCES)
def test_an_answer_does_not_depend_on_what_else_is_asked_and_stays_the_same(name: str) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (5, 6))
    queries = ask(logits)
    together = DEFENCES[name]().answer(queries).probabilities
    defence = DEFENCES[name]()
    for _ in range(2):
        for row in range(5):
            alone = defence.answer(ask(logits[row : row + 1], images=queries.images[row : row + 1])).probabilities
            np.testing.assert_allclose(alone[0], together[row], rtol=1e-12)


@pytest.mark.parametrize("name", DEFENCES)
def test_altered_says_whether_the_answer_is_another_than_the_models(name: str) -> None:
    logits = np.concatenate([np.random.default_rng(1).normal(0, 1, (20, 6)), 200 * np.eye(6)])
    answers = DEFENCES[name]().answer(ask(logits))
    changed = np.abs(answers.probabilities - softmax(logits)).max(1)
    np.testing.assert_array_equal(answers.altered, changed > 1e-6)
    assert answers.altered[:20].any()


@given(arrays(np.float64, 8, elements=st.floats(-8, 8)), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_reverse_sigmoid_keeps_a_top_class_of_more_than_one_half(logits: Any, beta: float, gamma: float) -> None:
    y = softmax(logits[None])
    if y.max() > 0.51:
        assert reverse_sigmoid(y, beta=beta, gamma=gamma).argmax() == y.argmax()


def test_reverse_sigmoid_may_move_an_uncertain_top_class() -> None:
    y = np.array([[0.4, 0.3, 0.3 - 1e-9, 1e-9]])
    assert reverse_sigmoid(y).argmax() == 3


def test_reverse_sigmoid_without_size_changes_nothing_and_an_answer_cut_to_nothing_is_uniform() -> None:
    y = np.array([[0.7, 0.2, 0.1]])
    np.testing.assert_allclose(reverse_sigmoid(y, beta=0), y)
    np.testing.assert_allclose(reverse_sigmoid(np.array([[0.5 + 1e-3, 0.5 - 1e-3]]), beta=1e6), [[0, 1]])
    np.testing.assert_allclose(reverse_sigmoid(np.array([[1.0, 1.0]]), beta=3), [[0.5, 0.5]])


POINTS = arrays(np.float64, (1, 5), elements=st.floats(-9, 9))


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
@given(POINTS, POINTS, st.floats(0.1, 5))
@settings(max_examples=100, deadline=None)
def test_the_projection_is_the_nearest_point_of_the_ball(
    norm: Any, power: int, point: Any, rival: Any, radius: float
) -> None:
    found = project_to_ball(point, radius, norm)
    assert np.linalg.norm(found[0], power) <= radius * (1 + 1e-9)
    rival = rival * min(1.0, radius / max(np.linalg.norm(rival[0], power), 1e-12))  # some other point of the ball
    assert np.linalg.norm(point - found) <= np.linalg.norm(point - rival) + 1e-9
    if np.linalg.norm(point[0], power) <= radius:
        np.testing.assert_allclose(found, point)


def test_uniform_draws_are_uniform() -> None:
    values = uniform_from_normal(np.random.default_rng(0).standard_normal(20000))
    np.testing.assert_allclose(np.quantile(values, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)


def test_keyed_noise_cannot_be_averaged_out_and_fresh_noise_can() -> None:
    logits = np.array([[1.0, 0.5, 0.0]])
    clean = softmax(logits)
    keyed, fresh = GaussianNoise(KEYED, sigma=0.05), GaussianNoise(fresh_poison, sigma=0.05)

    def mean(defence: Defence) -> Any:
        return np.mean([defence.answer(ask(logits)).probabilities for _ in range(1500)], 0)

    np.testing.assert_allclose(mean(keyed), keyed.answer(ask(logits)).probabilities, rtol=1e-9)
    np.random.seed(0)
    assert np.abs(mean(fresh) - clean).max() < 0.007 < np.abs(mean(keyed) - clean).max()


def test_no_noise_changes_nothing() -> None:
    y = softmax(np.random.default_rng(0).normal(size=(4, 5)))
    np.testing.assert_allclose(gaussian_noise(y, np.ones((4, 5)), sigma=0.0), y)
    unmoved = logit_noise(y, np.zeros((4, 5)), epsilon=1.0, norm="l2")
    np.testing.assert_allclose(unmoved, y)


@given(LOGITS, st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_top_k_keeps_the_k_best_in_their_proportions(logits: Any, k: int) -> None:
    y = softmax(logits)
    kept = top_k(y, k)
    assert ((kept > 0).sum(1) <= k).all()
    np.testing.assert_array_equal(kept.argmax(1), y.argmax(1))
    for row, own in zip(kept, y, strict=True):
        best = row > 0
        np.testing.assert_allclose(row[best], own[best] / own[best].sum())
        assert own[best].min() >= own[~best].max(initial=0)


def test_top_1_says_nothing_but_the_label() -> None:
    np.testing.assert_array_equal(top_k(np.array([[0.3, 0.4, 0.3], [0.5, 0.5, 0.0]])), [[0, 1, 0], [1, 0, 0]])


def test_rounding_of_many_small_probabilities_leaves_a_uniform_answer() -> None:
    np.testing.assert_allclose(rounded(np.full((1, 1000), 1e-3), 2), np.full((1, 1000), 1e-3))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: ReverseSigmoid(beta=-1.0), "beta is -1.0"),
        (lambda: ReverseSigmoid(gamma=np.nan), "gamma is nan"),
        (lambda: GaussianNoise(KEYED, sigma=-0.1), "sigma is -0.1"),
        (lambda: LogitNoise(KEYED, epsilon=0.0), "epsilon is 0.0"),
        (lambda: LogitNoise(KEYED, norm="l3"), "unknown norm 'l3'"),  # type: ignore[arg-type]
        (lambda: LogitNoise(KEYED, distribution="cauchy"), "unknown distribution"),  # type: ignore[arg-type]
        (lambda: TopK(k=0), "k is 0"),
        (lambda: Rounding(decimals=-1), "decimals is -1"),
        (lambda: MAD(other, epsilon=np.inf), "epsilon is inf"),
        (lambda: MAD(other, oracle="argmaximum"), "did you mean 'argmax'"),  # type: ignore[arg-type]
        (lambda: AdaptiveMisinformation(other, tau=1.5), "tau is 1.5"),
        (lambda: AdaptiveMisinformation(other, nu=0.0), "nu is 0.0"),
        (lambda: EDM([other], secret=SECRET), "at least 2 members, not 1"),
        (lambda: EDM([other, other], secret=b"short"), "at least 16 bytes"),
    ],
)
def test_impossible_values_are_refused(build: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build()
