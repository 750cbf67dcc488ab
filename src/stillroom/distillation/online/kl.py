"""What all losses between peers are made of: the soft-target term, cross-entropy over peers, the mean of the others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, positive

__all__ = ["check_peers", "kl_loss", "mean_of_others", "peer_cross_entropy"]

_FLOOR = 1e-7


def kl_loss(student: Tensor, soft_target: Tensor, *, temperature: float = 3.0) -> Tensor:
    """Return the soft-target term of online distillation, through which both sides are moved.

    D. Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020, as released:
    ``T² · (1/B) Σ_b Σ_k p (log p − log softmax(s / T))`` with ``p = softmax(t / T) + 1e-7``, not normalised again. Not
    to be confused with :func:`stillroom.losses.kd_loss`, which lets no gradient into the soft target; detach
    ``soft_target`` to have that here.

    Args:
        student: Logits of those who imitate.
        soft_target: Logits of those who are imitated.
        temperature: T, softens both distributions.

    Shapes:
        student, soft_target: [B, K], or [B, M, K] for M peers, whose terms are summed.

    Returns:
        A scalar.

    Raises:
        InputError: The shapes differ or the temperature is not above 0.

    Example:
        >>> print(f"{kl_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0, 0.0]]), temperature=3.0):.4f}")
        3.8687
    """
    positive("temperature", temperature)
    if student.shape != soft_target.shape or student.ndim not in (2, 3):
        raise InputError(
            f"peers and their soft targets must both be [B, K] or [B, M, K], not {list(student.shape)} and "
            f"{list(soft_target.shape)}"
        )
    log_student = F.log_softmax(full_precision(student) / temperature, dim=-1)
    # At least 1e-7 everywhere, so its logarithm is finite however far apart the logits are.
    target = F.softmax(full_precision(soft_target) / temperature, dim=-1) + _FLOOR
    return temperature**2 / student.shape[0] * F.kl_div(log_student, target, reduction="sum")


def peer_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the sum over peers of the mean cross-entropy at temperature 1.

    Shapes:
        logits: [B, M, K]; target: [B], int64; the result is a scalar.

    Example:
        >>> print(f"{peer_cross_entropy(torch.zeros(5, 3, 2), torch.zeros(5, dtype=torch.int64)):.4f}")
        2.0794
    """
    batch, peers, classes = logits.shape
    rows = full_precision(logits).reshape(batch * peers, classes)
    return F.cross_entropy(rows, target.repeat_interleave(peers), reduction="sum") / batch


def mean_of_others(logits: Tensor) -> Tensor:
    """Return, for every peer, the mean of all other peers' logits.

    Shapes:
        logits: [B, M, K] with M >= 2; the result has the same shape.

    Example:
        >>> mean_of_others(torch.tensor([[[1.0], [3.0], [8.0]]])).flatten()
        tensor([5.5000, 4.5000, 2.0000])
    """
    logits = full_precision(logits)
    return (logits.sum(1, keepdim=True) - logits) / (logits.shape[1] - 1)


def check_peers(logits: Tensor, target: Tensor, *, least: int) -> None:
    """Refuse logits that are not those of enough peers, and targets that are not one class a sample.

    Shapes:
        logits: [B, M, K] with M >= least; target: [B], int64.

    Raises:
        InputError: Another shape or type, an empty batch, or too few peers.
    """
    if logits.ndim != 3 or 0 in logits.shape:
        raise InputError(f"logits of peers must be [B, M, K], not {list(logits.shape)}")
    if logits.shape[1] < least:
        raise InputError(f"at least {least} peer(s) are needed, not {logits.shape[1]}")
    if target.shape != logits.shape[:1] or target.dtype is not torch.int64:
        raise InputError(
            f"target must be [{logits.shape[0]}] int64 class indices, one a sample, not {list(target.shape)} "
            f"{target.dtype}"
        )
