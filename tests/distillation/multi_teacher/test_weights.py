"""How teachers are weighed: invariants, the exact quadratic programme, and what the weights are applied to."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.distillation.multi_teacher.weights import (
    combine,
    confidence_weights,
    entropy_weights,
    gradient_weights,
    least_norm_weights,
    stack_logits,
    uniform_weights,
    weighted_kl,
)
from stillroom.errors import InputError
from stillroom.losses.kl import kd_loss

SEEDS = st.integers(0, 10_000)
FEW = settings(max_examples=25, deadline=None)


def logits(seed: int, teachers: int, samples: int = 5, classes: int = 4, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits of student [B, C] and teachers [K, B, C] in float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = scale * torch.randn(teachers + 1, samples, classes, generator=generator, dtype=torch.float64)
    return drawn[0], drawn[1:]


def target(seed: int, samples: int = 5, classes: int = 4) -> Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(seed))


@FEW
@given(SEEDS, st.integers(1, 6), st.floats(0.05, 1.2), st.integers(1, 6), st.booleans())
def test_no_feasible_direction_shortens_the_combined_gradient(
    seed: int, count: int, tolerance: float, dimensions: int, repeated: bool
) -> None:
    gradients = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if repeated:
        gradients[-1] = gradients[0]
    weights = least_norm_weights(gradients, tolerance=tolerance)
    cap = max(tolerance, 1 / count)
    assert weights.min() >= 0
    assert weights.max() <= cap + 1e-7
    assert abs(weights.sum() - 1) < 1e-9
    # Optimal on a convex set: moving weight from k to j, where both can move, must not help.
    slope = gradients @ (weights @ gradients)
    gains = [
        slope[k] - slope[j]
        for k, j in itertools.permutations(range(count), 2)
        if weights[k] > 1e-6 and weights[j] < cap - 1e-6
    ]
    assert max(gains, default=torch.tensor(0.0)) < 1e-6 * max(1.0, float(gradients.square().sum()))


@FEW
@given(SEEDS, st.integers(2, 6), st.permutations(range(6)))
def test_gradient_weights_follow_the_teachers_when_these_are_permuted(seed: int, count: int, order: list[int]) -> None:
    order = [k for k in order if k < count]
    gradients = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(least_norm_weights(gradients[order]), least_norm_weights(gradients)[order])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("gradient", [[1.0, -2.0], [0.0, 0.0]])
@pytest.mark.parametrize("normalize", [False, True])
def test_teachers_that_pull_alike_get_equal_weights(count: int, gradient: list[float], normalize: bool) -> None:
    alike = torch.tensor([gradient] * count)
    weights = least_norm_weights(alike, normalize=normalize)
    torch.testing.assert_close(weights, torch.full((count,), 1 / count))


def test_a_tolerance_below_one_kth_gives_equal_weights() -> None:
    weights = least_norm_weights(torch.randn(4, 3), tolerance=0.1)
    torch.testing.assert_close(weights, torch.full((4,), 0.25))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_gradient_weights_do_not_depend_on_the_scale(scale: float) -> None:
    gradients = torch.randn(3, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(least_norm_weights(scale * gradients), least_norm_weights(gradients))


@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_weights_are_those_of_the_gradients_autograd_finds(normalize: bool) -> None:
    student, teachers = logits(1, 3)
    leaf = student.clone().requires_grad_()
    gradients = torch.stack(
        [torch.autograd.grad(kd_loss(leaf, teacher, temperature=2.0), leaf)[0].mean(0) for teacher in teachers]
    )
    found = gradient_weights(student, teachers, temperature=2.0, normalize=normalize)
    torch.testing.assert_close(found, least_norm_weights(gradients, normalize=normalize).expand(5, 3))


@FEW
@given(SEEDS, st.integers(1, 6))
def test_confidence_weights_sum_to_one_and_rise_with_confidence(seed: int, count: int) -> None:
    _, teachers = logits(seed, count)
    labels = target(seed)
    weights = confidence_weights(teachers, labels)
    torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=torch.float64))
    correct = teachers.log_softmax(-1).gather(2, labels.expand(count, 5)[:, :, None])[:, :, 0].T
    # From the least to the most confident teacher of each sample the weights may only rise.
    assert bool((weights.gather(1, correct.argsort(1)).diff(dim=1) >= -1e-12).all())


def test_a_confidently_wrong_teacher_gets_no_weight() -> None:
    teachers = torch.tensor([[[5.0, 0.0]], [[0.0, 1e4]], [[5.0, 0.0]]])
    torch.testing.assert_close(confidence_weights(teachers, torch.tensor([0])), torch.tensor([[0.5, 0.0, 0.5]]))


@FEW
@given(SEEDS, st.integers(1, 6))
def test_entropy_weights_sum_to_one_less_than_the_teachers(seed: int, count: int) -> None:
    weights = entropy_weights(logits(seed, count)[1])
    torch.testing.assert_close(weights.sum(1), torch.full((5,), count - 1.0, dtype=torch.float64))


def test_certain_teachers_without_any_entropy_count_alike() -> None:
    certain = torch.tensor([[[1e4, 0.0]], [[0.0, 1e4]], [[1e4, 0.0]]])
    torch.testing.assert_close(entropy_weights(certain), torch.full((1, 3), 2 / 3))


def test_equal_weights_give_the_mean_of_the_teachers_losses() -> None:
    student, teachers = logits(4, 3)
    expected = sum(kd_loss(student, teacher, temperature=2.0) for teacher in teachers) / 3
    found = weighted_kl(student, teachers, uniform_weights(teachers), temperature=2.0)
    torch.testing.assert_close(found, expected)
    divided = weighted_kl(student, teachers, uniform_weights(teachers), temperature=2.0, reduction="mean")
    torch.testing.assert_close(divided, expected / 3)


def test_weights_of_one_sample_change_that_sample_only() -> None:
    student, teachers = logits(5, 2)
    student.requires_grad_()
    gradients = []
    for first in (0.5, 0.9):
        weights = torch.full((5, 2), 0.5, dtype=torch.float64)
        weights[0] = torch.tensor([first, 1 - first])
        gradients.append(torch.autograd.grad(weighted_kl(student, teachers, weights), student)[0])
    changed = (gradients[0] != gradients[1]).any(1)
    assert changed.tolist() == [True, False, False, False, False]


def test_gradient_reaches_student_and_weights_but_no_teacher() -> None:
    student, teachers = (value.requires_grad_() for value in logits(6, 3))
    weights = torch.full((5, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    weighted_kl(student, list(teachers.unbind()), weights).backward()
    assert student.grad is not None
    assert weights.grad is not None
    assert teachers.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", ["uniform", "entropy", "confidence", "gradient"])
def test_extreme_logits_give_finite_weights_and_losses(strategy: str, dtype: torch.dtype) -> None:
    student, teachers = (value.to(dtype) for value in logits(7, 3, scale=1e4))
    student = student.detach().requires_grad_()
    weights = {
        "uniform": lambda: uniform_weights(teachers),
        "entropy": lambda: entropy_weights(teachers),
        "confidence": lambda: confidence_weights(teachers, target(7)),
        "gradient": lambda: gradient_weights(student, teachers),
    }[strategy]()
    assert weights.dtype is torch.float32
    loss = weighted_kl(student, teachers, weights)
    loss.backward()
    assert weights.isfinite().all()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_no_teacher_is_refused() -> None:
    for nothing in ([], torch.zeros(0, 4, 3)):
        with pytest.raises(InputError, match="there is no teacher; give at least one"):
            stack_logits(nothing)


def test_teachers_with_other_classes_are_refused() -> None:
    with pytest.raises(InputError, match=r"teacher 1 answers \[4, 5\] .* the first one \[4, 3\]"):
        stack_logits([torch.zeros(4, 3), torch.zeros(4, 5)])
    with pytest.raises(InputError, match="differ in classes"):
        weighted_kl(torch.zeros(4, 5), torch.zeros(2, 4, 3), torch.ones(4, 2))


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"weights must be \[4, 2\] \(samples, teachers\), not \[2, 4\]"):
        combine(torch.ones(4, 2), torch.ones(2, 4), "sum")


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(IndexError):
        confidence_weights(torch.zeros(2, 1, 3), torch.tensor([3]))
    with pytest.raises(InputError, match="one class a sample"):
        confidence_weights(torch.zeros(2, 4, 3), torch.zeros(3, dtype=torch.int64))


@FEW
@given(SEEDS, st.integers(7, 20), st.floats(0.05, 1.2), st.integers(1, 30))
def test_the_weights_of_many_teachers_nearly_shorten_the_gradient_as_far_as_possible(
    seed: int, count: int, tolerance: float, dimensions: int
) -> None:
    gradients = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = least_norm_weights(gradients, tolerance=tolerance)
    cap = max(tolerance, 1 / count)
    assert weights.min() >= 0
    assert weights.max() <= cap + 1e-9
    assert abs(weights.sum() - 1) < 1e-9
    # The gap to the optimum of a convex function is at most what its tangent gains over the feasible set.
    slope = 2 * gradients @ (weights @ gradients)
    order = slope.argsort()
    best = torch.zeros_like(weights)
    for k in order.tolist():
        best[k] = min(cap, 1 - float(best.sum()))
    gap = slope @ (weights - best)
    assert gap < 1e-3 * gradients.square().sum(1).mean()


def test_no_gradient_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 teacher"):
        least_norm_weights(torch.zeros(0, 3))
