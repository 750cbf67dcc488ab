"""The divergences every logit method is made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.losses import confidence_kl, kd_loss, masked_kl, standardise_logits

B, K = 6, 9


def draw(seed: int = 0, scale: float = 3.0, classes: int = K) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits (a leaf), teacher logits and labels, in float64."""
    generator = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(B, classes, generator=generator, dtype=torch.float64)
    teacher = scale * torch.randn(B, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (B,), generator=generator)
    return student.requires_grad_(), teacher, target


def naive_kl(p: Tensor, q: Tensor) -> Tensor:
    """The definition, term by term, with 0 · log 0 = 0."""
    terms = torch.where(p > 0, p * (p.clamp(min=1e-300).log() - q.clamp(min=1e-300).log()), torch.zeros_like(p))
    return terms.sum() / len(p)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_the_definition(temperature: float) -> None:
    student, teacher, _ = draw()
    expected = temperature**2 * naive_kl((teacher / temperature).softmax(1), (student / temperature).softmax(1))
    torch.testing.assert_close(kd_loss(student, teacher, temperature=temperature), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_of_kd_is_the_difference_of_the_distributions(temperature: float) -> None:
    student, teacher, _ = draw()
    kd_loss(student, teacher, temperature=temperature).backward()
    difference = (student.detach() / temperature).softmax(1) - (teacher / temperature).softmax(1)
    torch.testing.assert_close(student.grad, temperature / B * difference)


def test_kd_ignores_a_constant_added_to_a_samples_logits() -> None:
    student, teacher, _ = draw()
    shift = torch.arange(B, dtype=torch.float64)[:, None]
    torch.testing.assert_close(kd_loss(student + shift, teacher - 2 * shift), kd_loss(student, teacher))


def test_kd_of_equal_logits_is_zero_with_zero_gradient() -> None:
    student, _, _ = draw()
    loss = kd_loss(student, student.detach())
    loss.backward()
    assert student.grad is not None
    torch.testing.assert_close(loss.detach(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-14)


def test_kd_at_a_low_temperature_trains_on_the_teachers_arg_max() -> None:
    """T → 0: the gradient tends to that of hard labels, scaled by T."""
    student, teacher, _ = draw()
    temperature = 0.001  # far below the smallest gap between these logits
    kd_loss(student, teacher, temperature=temperature).backward()
    soft = (student.detach() / temperature).softmax(1) - F.one_hot(teacher.argmax(1), K)
    torch.testing.assert_close(student.grad, temperature / B * soft, rtol=1e-6, atol=1e-9)


def test_the_gradient_agrees_with_finite_differences() -> None:
    student, teacher, target = draw()
    removed = F.one_hot(target, K).bool()
    assert torch.autograd.gradcheck(lambda z: kd_loss(z, teacher), student)
    assert torch.autograd.gradcheck(lambda z: kd_loss(standardise_logits(z), teacher), student)
    assert torch.autograd.gradcheck(lambda z: masked_kl(z, teacher, removed, temperature=2.0), student)
    best = teacher.argmax(1)
    assert torch.autograd.gradcheck(lambda z: confidence_kl(z, teacher, target, best, temperature=2.0), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_evaluated_in_float32(dtype: torch.dtype) -> None:
    student, teacher, target = draw()
    student, teacher = student.detach().to(dtype), teacher.to(dtype)
    removed = F.one_hot(target, K).bool()
    for loss in (
        lambda s, t: kd_loss(s, t),
        lambda s, t: masked_kl(s, t, removed, temperature=4.0),
        lambda s, t: confidence_kl(s, t, target, target, temperature=4.0),
        lambda s, t: standardise_logits(s),
    ):
        half = loss(student, teacher)
        assert half.dtype is torch.float32
        torch.testing.assert_close(half, loss(student.float(), teacher.float()), rtol=0, atol=0)


def test_autocast_changes_nothing() -> None:
    student, teacher, target = (value.detach() for value in draw())
    student, teacher = student.float(), teacher.float()
    expected = kd_loss(student, teacher), confidence_kl(student, teacher, target, target, temperature=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = kd_loss(student, teacher), confidence_kl(student, teacher, target, target, temperature=1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_binary_confidence_is_the_definition() -> None:
    student, teacher, target = draw()
    other = (target + 3) % K
    rows = torch.arange(B)
    p, q = (teacher / 2).softmax(1)[rows, other], (student / 2).softmax(1)[rows, target]
    expected = 4 * naive_kl(torch.stack((p, 1 - p), 1), torch.stack((q, 1 - q), 1))
    torch.testing.assert_close(confidence_kl(student, teacher, target, other, temperature=2.0), expected)


def test_binary_confidence_survives_certainty() -> None:
    """log(1 − p) where p is 1 in floating point: the closed form is the gap itself."""
    gap = 1e4
    student = torch.tensor([[gap, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, gap]])
    first = torch.tensor([0])
    loss = confidence_kl(student, teacher, first, first, temperature=1.0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor(gap))
    torch.testing.assert_close(student.grad, torch.tensor([[1.0, -1.0]]))


def test_masked_divergence_sees_the_kept_classes_only() -> None:
    student, teacher, _ = draw()
    removed = torch.zeros(B, K, dtype=torch.bool)
    removed[:, [0, 4]] = True
    kept = [1, 2, 3, 5, 6, 7, 8]
    expected = kd_loss(student[:, kept], teacher[:, kept], temperature=4.0)
    torch.testing.assert_close(masked_kl(student, teacher, removed, temperature=4.0), expected)
    shouting = student + 1e6 * removed
    torch.testing.assert_close(masked_kl(shouting, teacher, removed, temperature=4.0), expected)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sample_without_classes_contributes_nothing(dtype: torch.dtype) -> None:
    student, teacher, target = draw()
    student, teacher = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
    removed = F.one_hot(target, K).bool()
    removed[2] = True
    with torch.autograd.detect_anomaly(check_nan=True):
        loss = masked_kl(student, teacher, removed, temperature=1.0)
        loss.backward()
    others = [0, 1, 3, 4, 5]
    expected = masked_kl(student[others], teacher[others], removed[others], temperature=1.0) * 5 / 6
    torch.testing.assert_close(loss, expected)
    assert student.grad is not None
    assert not student.grad[2].any()


def test_standardised_logits_have_no_mean_and_unit_deviation() -> None:
    student, _, _ = draw()
    standard = standardise_logits(student)
    torch.testing.assert_close(standard.mean(1), torch.zeros(B, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(standard.std(1), torch.ones(B, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_row_of_equal_logits_standardises_to_zero_with_a_finite_gradient() -> None:
    flat = torch.full((2, K), 3.0, requires_grad=True)
    standard = standardise_logits(flat)
    (standard * torch.arange(K)).sum().backward()
    assert not standard.any()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"differ in classes \(3 vs 4\)"),
        (torch.zeros(2, 3), torch.zeros(5, 3), r"differ in samples \(2 vs 5\)"),
        (torch.zeros(2, 1), torch.zeros(2, 1), "at least 2 classes"),
        (torch.zeros(0, 3), torch.zeros(0, 3), "empty"),
        (torch.zeros(3), torch.zeros(3), r"\[B, K\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), "floating point"),
    ],
)
def test_logits_that_cannot_be_compared_are_refused(student: Tensor, teacher: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kd_loss(student, teacher)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), temperature=temperature)


def test_a_single_class_cannot_be_standardised() -> None:
    with pytest.raises(InputError, match="at least 2 classes"):
        standardise_logits(torch.zeros(4, 1))
