"""What the losses on logits have to do with each other: the Note's identities, DKD's, RLD's and the corrections'."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.distillation.offline.correction import (
    RevisionLoss,
    SelfCorrectionLoss,
    SwapLoss,
    revision_loss,
    self_correction_loss,
    swap_teacher,
)
from stillroom.distillation.offline.dkd import DKDLoss, dkd_loss, dkd_terms
from stillroom.distillation.offline.kd import KDLoss
from stillroom.distillation.offline.lskd import LSKDLoss, lskd_loss
from stillroom.distillation.offline.note import (
    confidence_penalty_loss,
    entropy,
    label_smoothing_loss,
    logits_matching_loss,
    mixed_target_loss,
)
from stillroom.distillation.offline.rld import RLDLoss, misleading_classes, rld_terms
from stillroom.errors import InputError
from stillroom.losses import kd_loss, standardise_logits

B, K = 6, 9


def draw(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits (a leaf), teacher logits and labels, in float64."""
    generator = torch.Generator().manual_seed(seed)
    student = 2.0 * torch.randn(B, K, generator=generator, dtype=torch.float64)
    teacher = 2.0 * torch.randn(B, K, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher, torch.randint(K, (B,), generator=generator)


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss, student)[0]


def test_label_smoothing_is_kd_from_a_uniform_teacher_plus_a_constant() -> None:
    student, _, target = draw()
    smoothing = 0.3
    uniform = torch.zeros(B, K, dtype=torch.float64)
    kd = (1 - smoothing) * F.cross_entropy(student, target) + smoothing * kd_loss(student, uniform, temperature=1.0)
    smoothed = label_smoothing_loss(student, target, smoothing=smoothing)
    torch.testing.assert_close(smoothed, kd + smoothing * math.log(K))
    torch.testing.assert_close(gradient(smoothed, student), gradient(kd, student))


def test_kd_at_temperature_one_is_a_mixed_soft_target_less_the_teachers_entropy() -> None:
    student, teacher, target = draw()
    alpha = 0.7
    kd = (1 - alpha) * F.cross_entropy(student, target) + alpha * kd_loss(student, teacher, temperature=1.0)
    mixed = mixed_target_loss(student, teacher, target, alpha=alpha)
    torch.testing.assert_close(kd, mixed - alpha * entropy(teacher))
    torch.testing.assert_close(gradient(kd, student), gradient(mixed, student))


def test_the_mixed_target_is_one_cross_entropy_to_a_mixed_distribution() -> None:
    student, teacher, target = draw()
    soft = 0.3 * F.one_hot(target, K) + 0.7 * teacher.softmax(1)
    torch.testing.assert_close(mixed_target_loss(student, teacher, target, alpha=0.7), F.cross_entropy(student, soft))


def test_the_confidence_penalty_is_the_reverse_divergence_to_uniform() -> None:
    student, _, target = draw()
    weight = 0.4
    p = student.softmax(1)
    reverse = (p * (p.log() + math.log(K))).sum(1).mean()
    expected = F.cross_entropy(student, target) + weight * reverse - weight * math.log(K)
    torch.testing.assert_close(confidence_penalty_loss(student, target, weight=weight), expected)


def test_kd_approaches_logits_matching_at_order_one_over_temperature() -> None:
    student, teacher, _ = draw()
    limit = logits_matching_loss(student, teacher)
    errors = [abs((kd_loss(student, teacher, temperature=t) - limit).item()) for t in (100.0, 200.0, 400.0, 800.0)]
    orders = [math.log2(before / after) for before, after in itertools.pairwise(errors)]
    assert orders == pytest.approx([1.0, 1.0, 1.0], abs=0.1)
    torch.testing.assert_close(
        gradient(kd_loss(student, teacher, temperature=1e6), student), gradient(limit, student), rtol=1e-4, atol=1e-7
    )


def test_raw_squared_error_differs_from_logits_matching_by_the_difference_of_the_means() -> None:
    student, teacher, _ = draw()
    raw = F.mse_loss(student, teacher) / 2
    means = (student.mean(1) - teacher.mean(1)).square().mean() / 2
    torch.testing.assert_close(logits_matching_loss(student, teacher), raw - means)


def test_shares_outside_zero_and_one_are_refused() -> None:
    student, teacher, target = draw()
    with pytest.raises(InputError, match="smoothing"):
        label_smoothing_loss(student, target, smoothing=1.5)
    with pytest.raises(InputError, match="alpha"):
        mixed_target_loss(student, teacher, target, alpha=-0.1)
    with pytest.raises(InputError, match="weight"):
        confidence_penalty_loss(student, target, weight=-1.0)


def test_lskd_ignores_scale_and_shift_of_either_network() -> None:
    student, teacher, _ = draw()
    expected = lskd_loss(student, teacher)
    torch.testing.assert_close(lskd_loss(3 * student - 1, teacher / 2 + 5), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_the_target_term_plus_the_teachers_doubt_times_the_non_target_term(temperature: float) -> None:
    student, teacher, target = draw()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(B):
        one = slice(row, row + 1)
        tckd, nckd = dkd_terms(student[one], teacher[one], target[one], temperature=temperature)
        doubt = 1 - (teacher[row] / temperature).softmax(0)[target[row]]
        total = total + (tckd + doubt * nckd) / B
    kd = kd_loss(student, teacher, temperature=temperature)
    torch.testing.assert_close(total, kd)
    torch.testing.assert_close(gradient(total, student), gradient(kd, student))


def test_with_two_classes_there_is_nothing_but_the_target_term() -> None:
    student, teacher, _ = draw()
    student, teacher = student[:, :2], teacher[:, :2]
    target = torch.tensor([0, 1, 0, 1, 0, 1])
    tckd, nckd = dkd_terms(student, teacher, target)
    assert nckd == 0
    torch.testing.assert_close(tckd, kd_loss(student, teacher))


def test_where_the_teacher_is_right_rld_is_dkd() -> None:
    student, teacher, _ = draw()
    target = teacher.argmax(1)
    found = rld_terms(student, teacher, target, temperature=4.0, alpha_temperature=4.0)
    torch.testing.assert_close(found, dkd_terms(student, teacher, target, temperature=4.0))


def test_classes_the_teacher_ranks_at_or_above_the_label_are_removed() -> None:
    teacher = torch.tensor([[5.0, 2.0, 2.0, 1.0, 3.0]])
    removed = misleading_classes(teacher, torch.tensor([1]))
    assert removed.tolist() == [[True, True, True, False, True]]


def test_the_masked_term_does_not_see_the_removed_classes() -> None:
    student, teacher, target = draw()
    _, expected = rld_terms(student, teacher, target)
    removed = misleading_classes(teacher, target)
    _, shouting = rld_terms(student + 50.0 * removed, teacher + 50.0 * removed, target)
    torch.testing.assert_close(shouting, expected)


def test_a_label_the_teacher_ranks_last_leaves_the_masked_term_without_gradient() -> None:
    student, teacher, _ = draw()
    target = teacher.argmin(1)
    _, mcd = rld_terms(student, teacher, target)
    assert mcd == 0
    assert not gradient(mcd, student).any()


def test_a_swapped_teacher_is_right_everywhere_and_keeps_its_values() -> None:
    _, teacher, target = draw()
    before = teacher.clone()
    swapped = swap_teacher(teacher, target)
    assert torch.equal(swapped.argmax(1), target)
    assert torch.equal(swapped.sort(1).values, teacher.sort(1).values)
    assert torch.equal(teacher, before)
    right = teacher.argmax(1)
    assert torch.equal(swap_teacher(teacher, right), teacher)


def test_rc_is_kd_plus_the_weighted_self_term() -> None:
    student, teacher, target = draw()
    expected = kd_loss(student, teacher) + 0.1 * self_correction_loss(student, target)
    torch.testing.assert_close(SelfCorrectionLoss()(student, teacher, target), expected)


def test_revision_with_a_teacher_that_is_always_right_is_cross_entropy_and_logit_error() -> None:
    student, teacher, _ = draw()
    target = teacher.argmax(1)
    expected = F.cross_entropy(student, target) + 4.0 * F.mse_loss(student, teacher)
    torch.testing.assert_close(revision_loss(student, teacher, target), expected)


def test_revision_means_over_the_two_subsets_separately() -> None:
    student, teacher, _ = draw()
    target = teacher.argmax(1)
    target[3:] = (target[3:] + 1) % K
    apart = revision_loss(student[:3], teacher[:3], target[:3]) + revision_loss(student[3:], teacher[3:], target[3:])
    torch.testing.assert_close(revision_loss(student, teacher, target), apart)


def test_modules_give_what_their_functions_give() -> None:
    student, teacher, target = draw()
    torch.testing.assert_close(KDLoss(temperature=3.0)(student, teacher), kd_loss(student, teacher, temperature=3.0))
    standard = kd_loss(standardise_logits(student), standardise_logits(teacher), temperature=3.0)
    torch.testing.assert_close(LSKDLoss(temperature=3.0)(student, teacher), standard)
    torch.testing.assert_close(
        DKDLoss(alpha=2.0, beta=3.0)(student, teacher, target),
        dkd_loss(student, teacher, target, alpha=2.0, beta=3.0),
    )
    scd, mcd = rld_terms(student, teacher, target)
    torch.testing.assert_close(RLDLoss(alpha=2.0, beta=3.0)(student, teacher, target), 2 * scd + 3 * mcd)
    torch.testing.assert_close(SwapLoss()(student, teacher, target), kd_loss(student, swap_teacher(teacher, target)))
    torch.testing.assert_close(RevisionLoss()(student, teacher, target), revision_loss(student, teacher, target))


def test_a_weight_of_zero_leaves_its_term_out() -> None:
    student, teacher, target = draw()
    tckd, nckd = dkd_terms(student, teacher, target)
    torch.testing.assert_close(dkd_loss(student, teacher, target, alpha=0.0, beta=1.0), nckd)
    torch.testing.assert_close(dkd_loss(student, teacher, target, alpha=1.0, beta=0.0), tckd)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("gap", [0.0, 50.0, 1e4])
def test_losses_outside_the_method_table_are_finite_at_extreme_gaps(gap: float, dtype: torch.dtype) -> None:
    teacher = (gap * torch.tensor([[0.0, 1.0, 0.3], [1.0, 0.0, 0.7], [0.2, 0.4, 1.0]])).to(dtype)
    target = torch.tensor([0, 0, 2])
    for loss in (
        lambda s: logits_matching_loss(s, teacher),
        lambda s: label_smoothing_loss(s, target),
        lambda s: confidence_penalty_loss(s, target),
        lambda s: mixed_target_loss(s, teacher, target),
        lambda s: SwapLoss()(s, teacher, target),
        lambda s: SelfCorrectionLoss()(s, teacher, target),
        lambda s: revision_loss(s, teacher, target),
    ):
        student = (-teacher).requires_grad_()
        value = loss(student)
        value.backward()
        assert value.dtype is torch.float32
        assert value.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("target", [torch.zeros(B, K), torch.zeros(B + 1, dtype=torch.int64), torch.zeros(B)])
def test_targets_that_are_not_one_class_a_sample_are_refused(target: Tensor) -> None:
    student, teacher, _ = draw()
    for loss in (DKDLoss(), RLDLoss(), SwapLoss(), SelfCorrectionLoss(), RevisionLoss()):
        with pytest.raises(InputError, match="target"):
            loss(student, teacher, target)
