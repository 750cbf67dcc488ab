"""The losses that the KD loss contains or borders on: logits matching, label smoothing, entropy regularisation.

D. Chen, "A Note on Knowledge Distillation Loss Function for Object Classification", arXiv 2109.06458, 2021. The Note
explains the classical loss and adds no training method. Its identities, in the names used here:

- ``kd_loss`` at temperature T tends to ``logits_matching_loss`` as T grows, with an error of order 1 / T;
- ``label_smoothing_loss`` is KD at T = 1 from a uniform teacher, up to the constant ``smoothing · log K``;
- ``(1 − α) CE + α KD`` at T = 1 is ``mixed_target_loss`` less α times the teacher's entropy, which is constant;
- ``confidence_penalty_loss`` is CE plus the reverse divergence ``KL(p_S ‖ uniform)``, up to a constant.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from stillroom.losses.checks import check_logits, check_target, full_precision, not_negative, share

__all__ = [
    "confidence_penalty_loss",
    "entropy",
    "label_smoothing_loss",
    "logits_matching_loss",
    "mixed_target_loss",
]


def logits_matching_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the limit of the KD loss as the temperature grows: squared distance of centred logits.

    ``(1 / B) Σ_b (1 / 2K) Σ_k (z̃_S − z̃_T)²`` with ``z̃ = z − mean_k z``. Not the mean squared error of raw logits,
    which also punishes a constant added to all logits of a sample; KD does not.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.

    Shapes:
        student, teacher: [B, K].

    Returns:
        A scalar.

    Raises:
        InputError: The logits cannot be compared.

    Example:
        >>> import torch
        >>> logits_matching_loss(torch.tensor([[5.0, 9.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(2.)
    """
    check_logits(student, teacher)
    difference = full_precision(student) - full_precision(teacher.detach())
    return (difference - difference.mean(dim=1, keepdim=True)).square().mean() / 2


def label_smoothing_loss(student: Tensor, target: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Return cross-entropy to labels mixed with the uniform distribution.

    ``CE((1 − ε) e_y + ε u, p_S) = (1 − ε) CE(e_y, p_S) + ε (KL(u ‖ p_S) + log K)``; the smoothing falls on all K
    classes, the true one included.

    Args:
        student: Logits of the network that learns.
        target: The labels.
        smoothing: ε, the share of the uniform distribution.

    Shapes:
        student: [B, K]; target: [B], int64.

    Returns:
        A scalar.

    Raises:
        InputError: The target does not fit or the share lies outside 0 and 1.
    """
    check_target(student, target)
    return F.cross_entropy(full_precision(student), target, label_smoothing=share("smoothing", smoothing))


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy ``−Σ_k p_k log p_k`` of the rows' distributions, in nats.

    Args:
        logits: Logits of either network.

    Shapes:
        logits: [B, K].

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> print(f"{entropy(torch.zeros(3, 4)):.4f}")
        1.3863
    """
    log_p = F.log_softmax(full_precision(logits), dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).mean()


def confidence_penalty_loss(student: Tensor, target: Tensor, *, weight: float = 0.1) -> Tensor:
    """Return cross-entropy less the weighted entropy of the student's own prediction.

    ``CE(e_y, p_S) − λ H(p_S) = CE(e_y, p_S) + λ KL(p_S ‖ u) − λ log K``: label smoothing's divergence to the uniform
    distribution, reversed.

    Args:
        student: Logits of the network that learns.
        target: The labels.
        weight: λ, the weight of the entropy.

    Shapes:
        student: [B, K]; target: [B], int64.

    Returns:
        A scalar.

    Raises:
        InputError: The target does not fit or the weight is negative.
    """
    check_target(student, target)
    student = full_precision(student)
    return F.cross_entropy(student, target) - not_negative("weight", weight) * entropy(student)


def mixed_target_loss(student: Tensor, teacher: Tensor, target: Tensor, *, alpha: float = 0.9) -> Tensor:
    """Return cross-entropy to the labels mixed with the teacher's prediction at temperature 1.

    ``CE((1 − α) e_y + α p_T, p_S) = (1 − α) CE(e_y, p_S) + α KL(p_T ‖ p_S) + α H(p_T)``.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.
        target: The labels.
        alpha: The teacher's share in the soft target.

    Shapes:
        student, teacher: [B, K]; target: [B], int64.

    Returns:
        A scalar.

    Raises:
        InputError: The logits cannot be compared, the target does not fit, or the share lies outside 0 and 1.
    """
    check_logits(student, teacher)
    check_target(student, target)
    student, soft = full_precision(student), F.softmax(full_precision(teacher.detach()), dim=1)
    share("alpha", alpha)
    return (1 - alpha) * F.cross_entropy(student, target) + alpha * F.cross_entropy(student, soft)
