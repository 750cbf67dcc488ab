from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defense.peers.asked import ask
from stillroom.defense.contracts import softmax
from stillroom.defense.mad import MAD, angular_objective, last_layer_jacobian, mad
from stillroom.errors import InputError


def case(seed: int, classes: int = 5, width: int = 3) -> tuple[Any, Any, Any]:
    """Return an answer, a proxy's probabilities and its features."""
    rng = np.random.default_rng(seed)
    y, guess = softmax(rng.normal(0, 2, (2, classes)))
    return y, guess, rng.normal(size=width)


def test_the_jacobian_is_what_autograd_finds() -> None:
    _, _, features = case(0)
    weights = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_p = (weights @ torch.from_numpy(features)).log_softmax(0)
    rows = [torch.autograd.grad(-value, weights, retain_graph=True)[0].flatten() for value in log_p]
    found = last_layer_jacobian(log_p.exp().detach().numpy(), features)
    np.testing.assert_allclose(found, torch.stack(rows).numpy(), atol=1e-12)


@given(
    st.integers(0, 999),
    st.floats(0.01, 3),
    st.sampled_from(list(product(["extreme", "argmax", "argmin"], ["surrogate", "angular"], ["l1", "l2"]))),
)
@settings(max_examples=100, deadline=None)
def test_the_answer_stays_in_the_simplex_and_within_its_bound(seed: int, epsilon: float, options: Any) -> None:
    y, guess, features = case(seed)
    oracle, objective, distance = options
    jacobian = last_layer_jacobian(guess, features)
    found = mad(jacobian, y, epsilon=epsilon, oracle=oracle, objective=objective, distance=distance)
    assert (found.probabilities >= 0).all()
    assert found.probabilities.sum() == pytest.approx(1)
    moved = np.linalg.norm(found.probabilities - y, 1 if distance == "l1" else 2)
    assert moved <= epsilon + 1e-9
    assert 0 <= found.objective <= 4
    if oracle == "argmax":
        assert found.probabilities.argmax() == y.argmax()


@given(st.integers(0, 999), st.sampled_from(["extreme", "argmax", "argmin"]), st.sampled_from(["surrogate", "angular"]))
@settings(max_examples=60, deadline=None)
def test_leaving_out_the_features_changes_no_answer(seed: int, oracle: Any, objective: Any) -> None:
    y, guess, features = case(seed)
    full = mad(last_layer_jacobian(guess, features), y, oracle=oracle, objective=objective)
    short = mad(last_layer_jacobian(guess, np.ones(1)), y, oracle=oracle, objective=objective)
    np.testing.assert_allclose(full.probabilities, short.probabilities, atol=1e-12)
    assert full.objective == pytest.approx(short.objective)


@given(st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_with_the_last_layer_the_extreme_surrogate_picks_the_least_likely_class(seed: int) -> None:
    y, guess, features = case(seed)
    assert mad(last_layer_jacobian(guess, features), y).target.argmax() == y.argmin()


def test_the_oracle_that_keeps_the_top_class_tries_every_set_with_it() -> None:
    y, guess, features = case(3, classes=4)
    jacobian = last_layer_jacobian(guess, features)
    best = -1.0
    for others in product([0.0, 1.0], repeat=3):
        candidate = np.insert(np.array(others), y.argmax(), 1 + 1e-5)
        candidate /= candidate.sum()
        best = max(best, float(angular_objective(jacobian, y, candidate[None])[0]))
    found = mad(jacobian, y, oracle="argmax", objective="angular", epsilon=2.0)
    assert found.objective == pytest.approx(best, rel=1e-6)


def test_a_gradient_of_zero_is_no_direction() -> None:
    y = np.array([0.5, 0.25, 0.25])
    found = mad(last_layer_jacobian(y, np.ones(1)), y, objective="angular")  # the proxy already says y
    assert np.isfinite(found.probabilities).all()
    assert found.objective == pytest.approx(1)


def test_too_many_classes_for_the_oracle_that_keeps_the_top_class_are_refused() -> None:
    with pytest.raises(InputError, match="handles 10 classes, not 11; take 'extreme'"):
        mad(np.eye(11), np.full(11, 1 / 11), oracle="argmax")


def test_the_defence_misleads_the_proxys_gradient_more_the_more_it_may() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (20, 6))
    guesses = np.random.default_rng(1).normal(0, 1, (20, 6))
    turned = []
    for epsilon in (0.1, 0.5, 2.0):
        answers = MAD(lambda _: guesses, epsilon=epsilon).answer(ask(logits))
        rows = zip(softmax(guesses), softmax(logits), answers.probabilities, strict=True)
        turned.append(
            np.mean([angular_objective(last_layer_jacobian(g, np.ones(1)), y, a[None])[0] for g, y, a in rows])
        )
    assert turned == sorted(turned)
    assert turned[-1] > 3 * turned[0]
