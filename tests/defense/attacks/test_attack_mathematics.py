"""Properties of the attacks' mathematics beyond the golden numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from stillroom.defense.attacks.clone import log_answers, mixed_loss, soft_cross_entropy
from stillroom.defense.attacks.dfme import discrepancy, reconstruct_logits
from stillroom.defense.attacks.disguide import Ensemble, disagreement_loss
from stillroom.defense.attacks.forward_differences import forward_differences, random_directions
from stillroom.defense.attacks.generator import Generator, Replay
from stillroom.defense.attacks.jbda import fgsm_perturbation, jacobian_augment, targeted_perturbation
from stillroom.defense.attacks.rewards import Bandit, Reward, Rewards, certainty, diversity, imitation_loss
from stillroom.errors import InputError

seeds = st.integers(0, 2**31)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    weight = drawn(seed, 12, 5)
    return lambda images: (images.flatten(1) @ weight).sin()


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(1e-4, 0.5))
def test_a_linear_loss_has_its_gradient_found_exactly_along_a_basis(seed: int, epsilon: float) -> None:
    basis = torch.linalg.qr(drawn(seed, 3, 6, 6)).Q.view(3, 6, 1, 2, 3)
    slope = drawn(seed + 1, 1, 2, 3)
    points = drawn(seed + 2, 3, 1, 2, 3)
    estimate, at_points = forward_differences(points, lambda p: (p * slope).sum((1, 2, 3)), basis, epsilon=epsilon)
    torch.testing.assert_close(estimate, slope.expand(3, 1, 2, 3), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(at_points, (points * slope).sum((1, 2, 3)))


def test_estimates_along_random_directions_are_unbiased() -> None:
    slope = drawn(1, 1, 2, 2)
    points = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    directions = random_directions(points, 20_000, torch.Generator().manual_seed(0))
    estimate, _ = forward_differences(points, lambda p: (p * slope).sum((1, 2, 3)), directions, epsilon=1e-3)
    torch.testing.assert_close(estimate[0], slope, rtol=0.05, atol=0.05)


def test_directions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="directions"):
        forward_differences(torch.zeros(2, 3), lambda p: p.sum(1), torch.zeros(2, 1, 4), epsilon=0.1)


@settings(max_examples=40, deadline=None)
@given(seeds, st.floats(0.01, 0.5))
def test_perturbations_stay_in_their_range(seed: int, epsilon: float) -> None:
    model, images = network(seed), drawn(seed + 1, 4, 1, 3, 4).sigmoid()
    labels = torch.arange(4)
    grown = jacobian_augment(model, images, labels, step=epsilon)
    deltas = [
        grown[4:] - images,
        fgsm_perturbation(model, images, labels, epsilon=epsilon),
        targeted_perturbation(model, images, labels, epsilon=epsilon, alpha=epsilon / 3),
    ]
    assert torch.equal(grown[:4], images)
    for delta in deltas:
        assert delta.abs().max() <= epsilon + 1e-12
        assert (images + delta).min() >= -1e-12
        assert (images + delta).max() <= 1 + 1e-12


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_a_small_step_moves_each_loss_the_right_way(seed: int) -> None:
    model, images = network(seed), 0.25 + drawn(seed + 1, 4, 1, 3, 4).sigmoid() / 2
    labels = torch.arange(4)

    def chosen(points: torch.Tensor) -> torch.Tensor:
        return model(points).gather(1, labels[:, None])

    def entropy(points: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(points), labels, reduction="none")

    tiny = 1e-6
    assert (chosen(jacobian_augment(model, images, labels, step=tiny)[4:]) >= chosen(images)).all()
    assert (entropy(images + fgsm_perturbation(model, images, labels, epsilon=tiny)) >= entropy(images)).all()
    towards = targeted_perturbation(model, images, labels, epsilon=tiny, alpha=tiny / 4)
    assert (chosen(images + towards) >= chosen(images)).all()


def test_samples_do_not_disturb_each_others_perturbations() -> None:
    model, images, labels = network(3), drawn(4, 6, 1, 3, 4).sigmoid(), torch.arange(6) % 5
    together = targeted_perturbation(model, images, labels)
    alone = torch.cat([targeted_perturbation(model, images[i : i + 1], labels[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone)


rows = arrays.arrays(np.float64, (5,), elements=st.floats(0, 1, width=16))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=12), st.sampled_from(get_args(Reward)))
def test_rewards_are_finite_whatever_is_answered(stream: list[tuple[np.ndarray, np.ndarray]], kind: Reward) -> None:
    rewards = Rewards(kind)
    assert all(np.isfinite(rewards(victim, clone)) for victim, clone in stream)


def test_rewards_one_by_one_are_those_of_the_whole_stream() -> None:
    victim, clone = (drawn(seed, 9, 4).softmax(1).numpy() for seed in (0, 1))
    means = victim.cumsum(0) / np.arange(1, 10)[:, None]
    whole = {
        "certainty": certainty(victim),
        "diversity": diversity(victim, means),
        "loss": imitation_loss(victim, clone),
    }
    together, parts = Rewards("all"), np.stack(list(whole.values()), 1)
    whole["all"] = np.array([together.standardise(row) for row in parts])
    for kind in get_args(Reward):
        rewards = Rewards(kind)
        found = [rewards(answer, imitation) for answer, imitation in zip(victim, clone, strict=True)]
        np.testing.assert_allclose(found, whole[kind], err_msg=kind)


def test_a_reward_that_never_changes_prefers_nothing() -> None:
    rewards = Rewards("all")
    answer = np.array([0.5, 0.25, 0.25])
    found = [rewards(answer, answer) for _ in range(4)]
    assert found[1:] == [0, 0, 0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), max_size=30))
def test_preferences_sum_to_zero_and_policies_to_one(stream: list[tuple[int, float]]) -> None:
    bandit = Bandit(4)
    for action, reward in stream:
        bandit.reward(action, reward)
    assert abs(bandit.preferences.sum()) < 1e-9
    assert abs(bandit.policy().sum() - 1) < 1e-12


def test_a_class_that_pays_is_chosen_more_and_more() -> None:
    bandit, rng = Bandit(3), np.random.default_rng(0)
    for _ in range(200):
        action = int(rng.choice(3, p=bandit.policy()))
        bandit.reward(action, float(action == 1))
    assert bandit.policy().argmax() == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=10), st.integers(1, 12))
def test_the_memory_holds_exactly_the_last_queries(calls: list[int], size: int) -> None:
    memory, everything = Replay(size), []
    for call in calls:
        batch = torch.arange(len(everything), len(everything) + call, dtype=torch.float64)
        everything += batch.tolist()
        memory.add(batch[:, None], 2 * batch[:, None])
        assert sorted(memory.images.ravel().tolist()) == everything[-size:]
    images, answers = memory.draw(20, torch.Generator().manual_seed(0))
    assert torch.equal(2 * images, answers)
    assert set(images.ravel().tolist()) <= set(everything[-size:])


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_reconstructed_logits_are_the_victims_up_to_a_constant(seed: int) -> None:
    logits = drawn(seed, 3, 4)
    torch.testing.assert_close(reconstruct_logits(logits.softmax(1)), logits - logits.mean(1, keepdim=True))
    lowest = reconstruct_logits(logits.softmax(1), correction="min")
    torch.testing.assert_close(lowest, logits - logits.amin(1, keepdim=True))
    torch.testing.assert_close(discrepancy(logits, logits + 3, kind="kl"), torch.zeros(3, dtype=torch.float64))


def test_losses_on_labels_alone_are_finite_and_the_soft_one_is_plain_cross_entropy() -> None:
    logits, labels = drawn(0, 6, 4), torch.arange(6) % 4
    answers = torch.eye(4, dtype=torch.float64)[labels]
    torch.testing.assert_close(soft_cross_entropy(logits, answers), nn.functional.cross_entropy(logits, labels))
    assert mixed_loss(logits, answers).isfinite()
    assert log_answers(answers).isfinite().all()


def test_the_mixed_loss_is_its_formula() -> None:
    student, victim = drawn(0, 6, 4), drawn(1, 6, 4)
    soft = (victim / 3).softmax(1)
    divergence = (soft * (soft.log() - (student / 3).log_softmax(1))).sum(1).mean()
    expected = 0.7 * nn.functional.cross_entropy(student, victim.argmax(1)) + 0.3 * 9 * divergence
    torch.testing.assert_close(mixed_loss(student, victim.softmax(1)), expected)


def test_clones_that_agree_exactly_give_a_finite_gradient() -> None:
    logits = drawn(0, 4, 1, 5).repeat(1, 2, 1).requires_grad_()
    disagreement_loss(logits).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_an_ensemble_answers_with_the_mean_of_its_members() -> None:
    members = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(3)]
    images = torch.rand(5, 1, 2, 2)
    expected = torch.stack([member(images).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(Ensemble(members)(images).softmax(1), expected)
    with pytest.raises(InputError, match="at least 2"):
        Ensemble(members[:1])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(4, 33), st.integers(4, 33))
def test_a_generator_makes_images_of_any_shape(channels: int, height: int, width: int) -> None:
    made = Generator((channels, height, width), latent=4, width=2)(torch.randn(2, 4))
    assert made.shape == (2, channels, height, width)
    pixels = Generator.pixels(made)
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.parametrize("make", [lambda: Generator((3, 2, 8)), lambda: Replay(0), lambda: Bandit(0)])
def test_impossible_sizes_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()
