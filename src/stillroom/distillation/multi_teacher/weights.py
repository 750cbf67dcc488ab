"""One interface to several teachers: per-sample weights [B, K] from a strategy, and the loss they weigh.

The strategies are uniform (AVER), entropy (EBKD), confidence (CA-MKD), gradient (AEKD) and learned (MMKD, in
:mod:`stillroom.distillation.multi_teacher.mmkd`). Each returns one weight per sample and teacher, teachers last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.losses.checks import check_logits, check_target, full_precision, positive

__all__ = [
    *("Reduction", "combine", "confidence_weights", "entropy_weights", "gradient_weights", "least_norm_weights"),
    *("stack_logits", "uniform_weights", "weighted_kl"),
]

Reduction = Literal["sum", "mean"]

FEW_TEACHERS = 6  # up to so many, gradient weights try all 3^K faces of the feasible set
ITERATIONS = 300  # of the projected gradient beyond


def stack_logits(teachers: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the teachers' logits as one detached tensor [K, B, C] in at least float32.

    Args:
        teachers: Such a tensor, or one [B, C] from every teacher.

    Raises:
        InputError: There is no teacher, or the teachers differ in classes or samples.

    Example:
        >>> stack_logits([torch.zeros(4, 3), torch.ones(4, 3)]).shape
        torch.Size([2, 4, 3])
    """
    if not isinstance(teachers, Tensor):
        if not teachers:
            raise InputError("there is no teacher; give at least one")
        for number, logits in enumerate(teachers):
            if logits.shape != teachers[0].shape:
                raise InputError(
                    f"teacher {number} answers {list(logits.shape)} (samples, classes), the first one "
                    f"{list(teachers[0].shape)}; match their classes first"
                )
        teachers = torch.stack([full_precision(logits) for logits in teachers])
    if teachers.ndim != 3:
        raise InputError(f"the teachers' logits must be [K, B, C], not {list(teachers.shape)}")
    if teachers.shape[0] == 0:
        raise InputError("there is no teacher; give at least one")
    return full_precision(teachers.detach())


def combine(losses: Tensor, weights: Tensor, reduction: Reduction) -> Tensor:
    """Return the weighted sum over teachers, averaged over samples: ``(1/B) Σ_b Σ_k w_bk loss_bk``.

    Args:
        losses: One loss per sample and teacher.
        weights: Their weights; gradient flows to both.
        reduction: ``"mean"`` also divides by the number of teachers, as CA-MKD and EBKD do.

    Shapes:
        losses, weights: [B, K].

    Raises:
        InputError: The shapes differ.
    """
    if losses.shape != weights.shape:
        raise InputError(f"weights must be {list(losses.shape)} (samples, teachers), not {list(weights.shape)}")
    total = (weights * losses).sum(1).mean()
    return total / losses.shape[1] if reduction == "mean" else total


def weighted_kl(
    student: Tensor,
    teachers: Tensor | Sequence[Tensor],
    weights: Tensor,
    *,
    temperature: float = 4.0,
    reduction: Reduction = "sum",
) -> Tensor:
    """Return the classical distillation loss towards several teachers, each weighted per sample.

    ``(1/B) Σ_b Σ_k w_bk T² KL(softmax(z_k/T) ‖ softmax(z_S/T))_b``; AVER is the weight 1/K, MMKD's is this very
    sum, CA-MKD's and EBKD's divide it by K once more (``reduction="mean"``).

    Args:
        student: Logits of the network that learns.
        teachers: Logits of every teacher; no gradient flows to them.
        weights: Per-sample weights; gradient flows to them unless they are detached.
        temperature: T, softens all distributions.
        reduction: ``"mean"`` for the further division by K.

    Shapes:
        student: [B, C].
        teachers: [K, B, C], or K times [B, C].
        weights: [B, K].

    Returns:
        A scalar.

    Raises:
        InputError: The logits cannot be compared, the weights have another shape, or the temperature is not above 0.

    Example:
        >>> student, teachers = torch.tensor([[1.0, 3.0]]), torch.tensor([[[4.0, 0.0]], [[1.0, 3.0]]])
        >>> print(f"{weighted_kl(student, teachers, torch.tensor([[0.5, 0.5]])):.4f}")
        2.0592
    """
    stacked = stack_logits(teachers)
    check_logits(student, stacked[0])
    positive("temperature", temperature)
    log_student = F.log_softmax(full_precision(student) / temperature, dim=-1)
    log_teachers = F.log_softmax(stacked / temperature, dim=-1)
    divergence = F.kl_div(log_student.expand_as(log_teachers), log_teachers, reduction="none", log_target=True)
    return combine(temperature**2 * divergence.sum(-1).T, weights, reduction)


def uniform_weights(teachers: Tensor | Sequence[Tensor]) -> Tensor:
    """Return 1/K for every sample and teacher (AVER).

    Shapes:
        [K, B, C] -> [B, K].
    """
    stacked = stack_logits(teachers)
    return stacked.new_full((stacked.shape[1], stacked.shape[0]), 1 / stacked.shape[0])


def entropy_weights(teachers: Tensor | Sequence[Tensor]) -> Tensor:
    """Weigh a teacher less the less certain it is (EBKD): ``w_bk = 1 − H_bk / Σ_j H_bj``.

    K. Kwon, H. Na, H. Lee, N. S. Kim, "Adaptive Knowledge Distillation Based on Entropy", ICASSP 2020. H is the entropy
    of the teacher's distribution at temperature 1. The weights of a sample sum to K − 1, not to 1.

    Shapes:
        [K, B, C] -> [B, K].

    Example:
        >>> print(entropy_weights(torch.tensor([[[9.0, 0.0]], [[0.0, 0.0]]])))
        tensor([[0.9982, 0.0018]])
    """
    stacked = stack_logits(teachers)
    entropy = torch.special.entr(F.softmax(stacked, dim=-1)).sum(-1).T  # 0 · log 0 is 0
    total = entropy.sum(1, keepdim=True)
    certain = total <= 0  # all teachers are: none can be preferred
    share = torch.where(certain, 1 / stacked.shape[0], entropy / total.masked_fill(certain, 1.0))
    return 1 - share


def confidence_weights(logits: Tensor, target: Tensor) -> Tensor:
    """Weigh a teacher more the better it predicts the label: ``w_bk = (1 − softmax_k(ℓ)_bk) / (K − 1)``.

    H. Zhang, D. Chen, C. Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022. ``ℓ_bk`` is the
    cross-entropy of teacher k on sample b. The weights of a sample sum to 1; a single teacher gets the weight 1.
    Gradient flows to the logits if they carry any.

    Shapes:
        logits [K, B, C], target [B] int64 -> [B, K].

    Raises:
        InputError: The logits are not [K, B, C] with K >= 1, or the target does not fit.

    Example:
        >>> print(confidence_weights(torch.tensor([[[4.0, 0.0]], [[0.0, 4.0]]]), torch.tensor([0])))
        tensor([[0.9820, 0.0180]])
    """
    if logits.ndim != 3 or logits.shape[0] == 0:
        raise InputError(f"logits of at least one teacher must be [K, B, C], not {list(logits.shape)}")
    check_target(logits[0], target)
    count = logits.shape[0]
    logits = full_precision(logits)
    if count == 1:
        return logits.new_ones(logits.shape[1], 1)
    losses = F.cross_entropy(logits.permute(1, 2, 0), target[:, None].expand(-1, count), reduction="none")  # [B, K]
    return (1 - F.softmax(losses, dim=1)) / (count - 1)


def gradient_weights(
    student: Tensor,
    teachers: Tensor | Sequence[Tensor],
    *,
    temperature: float = 4.0,
    tolerance: float = 0.6,
    normalize: bool = False,
) -> Tensor:
    """Weigh the teachers so that their gradients at the student's logits disagree least (AEKD).

    S. Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", NeurIPS 2020. With
    ``g_k`` the mean over the batch of the gradient of teacher k's loss, the weights solve :func:`least_norm_weights`.

    Args:
        student: Logits of the network that learns; no gradient flows through the weights.
        teachers: Logits of every teacher.
        temperature: T of the losses.
        tolerance: Largest weight.
        normalize: Compare directions only.

    Shapes:
        student [B, C], teachers [K, B, C] -> [B, K], the same weights for every sample.
    """
    stacked = stack_logits(teachers)
    check_logits(student, stacked[0])
    student = full_precision(student.detach())
    # The gradient in closed form: T/B (p_S − p_k); then its mean over the batch, as in the released code.
    gap = F.softmax(student / temperature, dim=-1) - F.softmax(stacked / temperature, dim=-1)
    gradients = gap.mean(1) * (temperature / student.shape[0])
    weights = least_norm_weights(gradients, tolerance=tolerance, normalize=normalize)
    return weights.expand(student.shape[0], -1)


def least_norm_weights(gradients: Tensor, *, tolerance: float = 0.6, normalize: bool = False) -> Tensor:
    """Return the weights of the shortest combination of gradients.

    ``w = argmin ‖Σ_k w_k g_k‖²`` with ``Σ w = 1`` and ``0 ≤ w_k ≤ tolerance``. A tolerance below 1/K is taken as 1/K.
    Of several optima the one nearest to equal weights is returned.

    Up to six teachers the optimum is exact: on every face of the feasible set (each weight at 0, at the tolerance, or
    free) it is one small linear system, and all are solved in one batch in float64. For more, 300 steps of an
    accelerated projected gradient come close. Nothing is read on the host.

    Args:
        gradients: One for each teacher; they are not differentiated through.
        tolerance: Largest weight.
        normalize: Solve for the directions ``g_k/‖g_k‖`` and divide the weights by the lengths afterwards.

    Shapes:
        [K, D] -> [K].

    Raises:
        InputError: No gradient, or a tolerance that is not above 0.

    Example:
        >>> least_norm_weights(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), tolerance=1.0)
        tensor([0.7500, 0.2500])
    """
    if gradients.ndim != 2 or gradients.shape[0] < 1:
        raise InputError(f"gradients must be [K, D] of at least 1 teacher, not {list(gradients.shape)}")
    count = gradients.shape[0]
    cap = max(positive("tolerance", tolerance), 1 / count)
    exact = gradients.detach().to(torch.float32 if gradients.device.type == "mps" else torch.float64)
    lengths = torch.linalg.vector_norm(exact, dim=1).clamp(min=1e-30)
    if normalize:
        exact = exact / lengths[:, None]
    solve = _solve if count <= FEW_TEACHERS else _approach
    weights = solve(exact @ exact.T, cap)
    if normalize:
        weights = weights / lengths
        weights = weights / weights.sum()
    return weights.to(gradients.dtype)


def _solve(gram: Tensor, cap: float) -> Tensor:
    """Minimise ``wᵀ gram w`` over ``Σ w = 1, 0 ≤ w ≤ cap``."""
    count = gram.shape[0]
    digits = torch.arange(3**count, device=gram.device)[:, None] // 3 ** torch.arange(count, device=gram.device) % 3
    free, held = (digits == 2).to(gram), cap * (digits == 1).to(gram)  # [3^K, K]: which are free; the others' values
    # A tiny ridge makes the optimum unique: of several the one nearest to equal weights.
    scale = gram.diagonal().mean().clamp(min=1e-60)
    gram = gram / scale + 1e-10 * torch.eye(count).to(gram)
    # Stationarity G_FF w_F + G_FN w_N + λ = 0 on the free weights, w = held elsewhere, and Σ w = 1.
    matrix = gram.new_zeros(len(free), count + 1, count + 1)
    matrix[:, :count, :count] = free[:, :, None] * gram + torch.diag_embed(1 - free)
    matrix[:, :count, count] = free
    matrix[:, count, :count] = 1
    # Without a free weight the sum is not an equation but a fact or a contradiction; λ is then set to 0.
    corner = free.sum(1) == 0
    matrix[:, count, :count] *= (~corner)[:, None]
    matrix[:, count, count] = corner.to(gram)
    right = torch.cat((held, (~corner).to(gram)[:, None]), 1)
    # solve_ex does not read on the host whether it succeeded; a singular system gives a point that is not feasible.
    points = torch.linalg.solve_ex(matrix, right[:, :, None]).result[:, :count, 0]
    outside = torch.stack((-points.amin(1), points.amax(1) - cap, (points.sum(1) - 1).abs())).amax(0)
    values = torch.einsum("nk,kl,nl->n", points, gram, points).where(outside <= 1e-7, float("inf"))
    best = points.index_select(0, values.argmin()[None])[0].clamp(0, cap)
    weights: Tensor = best / best.sum()
    return weights


def _approach(gram: Tensor, cap: float) -> Tensor:
    """Minimise the same by Nesterov's accelerated projected gradient: for many teachers there are too many faces."""
    count = gram.shape[0]
    gram = gram / gram.diagonal().mean().clamp(min=1e-60) + 1e-10 * torch.eye(count).to(gram)
    step = 1 / gram.diagonal().sum()  # at most 1 over the largest eigenvalue
    weights = point = gram.new_full((count,), 1 / count)
    for number in range(ITERATIONS):
        before, weights = weights, _onto_simplex(point - step * (gram @ point), cap)
        point = weights + number / (number + 3) * (weights - before)
    return weights


def _onto_simplex(point: Tensor, cap: float) -> Tensor:
    """Return the nearest point with ``Σ w = 1, 0 ≤ w ≤ cap``: ``clamp(point − t, 0, cap)`` with the right t."""
    # The sum falls piecewise linearly in t, with corners where an entry leaves 0 or reaches the cap.
    corners = torch.cat((point, point - cap)).sort(descending=True).values
    sums = (point - corners[:, None]).clamp(0, cap).sum(1)  # rises from 0 to K · cap
    after = torch.searchsorted(sums, sums.new_ones(1), right=False).clamp(1, len(corners) - 1)
    low, high = sums[after - 1], sums[after]
    share = (1 - low) / (high - low).clamp(min=1e-300)
    threshold = corners[after - 1] + share * (corners[after] - corners[after - 1])
    return (point - threshold).clamp(0, cap)
