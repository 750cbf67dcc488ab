"""Kullback-Leibler divergences between the class distributions of two networks.

Everything is evaluated in log space and in at least float32, so value and gradient stay finite for any finite logits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.losses.checks import check_logits, full_precision, positive

__all__ = ["confidence_kl", "kd_loss", "masked_kl", "standardise_logits"]


def kd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return the classical distillation loss, the teacher's softened distribution as soft target.

    G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NeurIPS workshop 2014:
    ``T² · (1/B) Σ_b Σ_k p_T[b,k] (log p_T[b,k] − log p_S[b,k])`` with ``p = softmax(z / T)``. Its gradient is
    ``(T / B) (p_S − p_T)``.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.
        temperature: T, softens both distributions.

    Shapes:
        student, teacher: [B, K].

    Returns:
        A scalar.

    Raises:
        InputError: The logits cannot be compared or the temperature is not above 0.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0, 0.0]])
        >>> print(f"{kd_loss(student, teacher, temperature=4.0):.4f}")
        4.1185
    """
    check_logits(student, teacher)
    positive("temperature", temperature)
    log_student = F.log_softmax(full_precision(student) / temperature, dim=1)
    log_teacher = F.log_softmax(full_precision(teacher.detach()) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def standardise_logits(logits: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Return every sample's logits with mean 0 and standard deviation 1 over the classes.

    S. Sun, W. Ren, J. Li, R. Wang, X. Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024:
    ``(z − mean_k z) / (eps + std_k z)`` with the unbiased (K − 1) divisor. Gradient flows through mean and deviation.

    Args:
        logits: Logits of either network.
        eps: Keeps a row of equal logits finite.

    Shapes:
        logits: [B, K] with K >= 2; the result has the same shape.

    Returns:
        The standardised logits, in at least float32.

    Raises:
        InputError: There are fewer than two classes.

    Example:
        >>> standardise_logits(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.0000,  0.0000,  1.0000]])
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(f"logits to standardise must be [B, K] with at least 2 classes, not {list(logits.shape)}")
    logits = full_precision(logits)
    return (logits - logits.mean(dim=1, keepdim=True)) / (eps + logits.std(dim=1, keepdim=True))


def _log_confidence(logits: Tensor, index: Tensor) -> Tensor:
    """Return ``(log p_i, log(1 − p_i))`` of one class a sample, [B, 2].

    Both come from the log odds, the class's logit less the logsumexp of the others: they neither cancel when p is
    tiny nor underflow when p is 1 in floating point.
    """
    index = index[:, None]
    others = logits.scatter(1, index, float("-inf")).logsumexp(dim=1, keepdim=True)
    odds = logits.gather(1, index) - others
    return F.logsigmoid(torch.cat((odds, -odds), dim=1))


def confidence_kl(
    student: Tensor, teacher: Tensor, student_index: Tensor, teacher_index: Tensor, *, temperature: float
) -> Tensor:
    """Return T² times the divergence of two binary distributions "this class or any other".

    ``T² · (1/B) Σ_b KL((p_T[i], 1 − p_T[i]) ‖ (p_S[j], 1 − p_S[j]))`` where i and j are the classes named for the
    teacher and for the student.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.
        student_index: The class whose confidence the student learns.
        teacher_index: The class whose confidence the teacher shows.
        temperature: T, softens both distributions.

    Shapes:
        student, teacher: [B, K]; student_index, teacher_index: [B], int64.

    Returns:
        A scalar.
    """
    log_student = _log_confidence(full_precision(student) / temperature, student_index)
    log_teacher = _log_confidence(full_precision(teacher.detach()) / temperature, teacher_index)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def masked_kl(student: Tensor, teacher: Tensor, removed: Tensor, *, temperature: float) -> Tensor:
    """Return T² times the divergence of the two distributions over the classes that are not removed.

    A sample all of whose classes are removed contributes exactly 0 to the value and to the gradient.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.
        removed: True where a class takes no part.
        temperature: T, softens both distributions.

    Shapes:
        student, teacher: [B, K]; removed: [B, K], bool.

    Returns:
        A scalar: mean over all B samples.
    """

    def log_softmax(logits: Tensor) -> Tensor:
        logits = full_precision(logits) / temperature
        # A finite fill: with -inf a fully removed row is NaN, and so is 0 · (-inf − -inf) in the divergence.
        return F.log_softmax(logits.masked_fill(removed, torch.finfo(logits.dtype).min / 2), dim=1)

    return temperature**2 * F.kl_div(
        log_softmax(student), log_softmax(teacher.detach()), reduction="batchmean", log_target=True
    )
