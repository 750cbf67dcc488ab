"""Three ways to mend a wrong teacher by the labels, as compared with by RLD: swap, RC and revision.

All three are the versions in the code released with W. Sun, D. Chen, S. Lyu, G. Chen, C. Chen, C. Wang, "Knowledge
Distillation with Refined Logits", ICCV 2025 (arXiv 2408.07703).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.losses.checks import check_logits, check_target, full_precision, not_negative, positive, share
from stillroom.losses.kl import kd_loss

__all__ = ["RevisionLoss", "SelfCorrectionLoss", "SwapLoss", "revision_loss", "self_correction_loss", "swap_teacher"]


def swap_teacher(teacher: Tensor, target: Tensor) -> Tensor:
    """Return the teacher's logits with the values of its arg max and of the true class exchanged.

    Args:
        teacher: The teacher's logits.
        target: The labels.

    Shapes:
        teacher: [B, K]; target: [B], int64; the result: [B, K].

    Returns:
        A new tensor; rows on which the teacher is right are unchanged.

    Raises:
        InputError: The target does not fit.

    Example:
        >>> swap_teacher(torch.tensor([[5.0, 1.0, 2.0]]), torch.tensor([1]))
        tensor([[1., 5., 2.]])
    """
    check_target(teacher, target)
    label, best = target[:, None], teacher.argmax(dim=1, keepdim=True)
    return teacher.scatter(1, best, teacher.gather(1, label)).scatter(1, label, teacher.gather(1, best))


def self_correction_loss(student: Tensor, target: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Return the KD loss from the student's own logits with the true class raised (RC's self-term).

    ``KD(z_S, z')`` where z' equals the detached z_S except for ``z'[y] = z_S[y] + max_k z_S[k]``. RC adds 0.1 times
    this to CE + KD. Despite the name, reliable correction, the pseudo teacher is the student; as the maximum may be
    negative, the true class is not always raised.

    Args:
        student: Logits of the network that learns.
        target: The labels.
        temperature: T, softens both distributions.

    Shapes:
        student: [B, K]; target: [B], int64.

    Returns:
        A scalar.

    Raises:
        InputError: The target does not fit or the temperature is not above 0.
    """
    check_target(student, target)
    own, label = full_precision(student.detach()), target[:, None]
    raised = own.gather(1, label) + own.amax(dim=1, keepdim=True)
    return kd_loss(student, own.scatter(1, label, raised), temperature=temperature)


def revision_loss(
    student: Tensor, teacher: Tensor, target: Tensor, *, lambda1: float = 4.0, lambda2: float = 1.0, eta: float = 0.8
) -> Tensor:
    """Return the label-revision loss: right and wrong answers of the teacher are learnt differently.

    On samples where the teacher is right: ``CE + lambda1 · MSE(z_S, z_T)`` on raw logits. Where it is wrong:
    ``lambda2 · MSE(p_S, q)`` with ``q = β p_T + (1 − β) e_y`` and ``β = eta / (max p_T − p_T[y] + 1)``, at temperature
    1. Each is a mean over its own samples; no samples, no contribution. It already contains the cross-entropy.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.
        target: The labels.
        lambda1: Weight of the logits' squared error.
        lambda2: Weight of the probabilities' squared error.
        eta: How much of a wrong teacher's prediction remains.

    Shapes:
        student, teacher: [B, K]; target: [B], int64.

    Returns:
        A scalar.

    Raises:
        InputError: The logits cannot be compared or the target does not fit.
    """
    check_logits(student, teacher)
    check_target(student, target)
    student, teacher = full_precision(student), full_precision(teacher.detach())
    right = (teacher.argmax(dim=1) == target).to(student.dtype)
    wrong = 1 - right
    cross_entropy = F.cross_entropy(student, target, reduction="none")
    logit_error = (student - teacher).square().mean(dim=1)

    p_teacher = F.softmax(teacher, dim=1)
    label = target[:, None]
    beta = eta / (p_teacher.amax(dim=1, keepdim=True) - p_teacher.gather(1, label) + 1)
    is_target = torch.arange(student.shape[1], device=target.device) == label
    revised = beta * p_teacher + (1 - beta) * is_target.to(student.dtype)
    probability_error = (F.softmax(student, dim=1) - revised).square().mean(dim=1)

    # Sums over a mask keep shapes static: splitting the batch would wait for the device.
    learnt = (right * (cross_entropy + lambda1 * logit_error)).sum() / right.sum().clamp(min=1)
    mended = (wrong * lambda2 * probability_error).sum() / wrong.sum().clamp(min=1)
    return learnt + mended


class SwapLoss(nn.Module):
    """The classical KD loss to :func:`swap_teacher`; as released it is trained without cross-entropy.

    Args:
        temperature: T, softens both distributions.
    """

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the student's logits against the swapped teacher's."""
        check_logits(student, teacher)
        return kd_loss(student, swap_teacher(teacher, target), temperature=self.temperature)

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"temperature={self.temperature}"


class SelfCorrectionLoss(nn.Module):
    """RC's teacher and self-terms: ``KD(z_S, z_T) + weight · KD(z_S, z')``, see :func:`self_correction_loss`.

    Args:
        temperature: T, softens all distributions.
        weight: Weight of the self-term.
    """

    def __init__(self, *, temperature: float = 4.0, weight: float = 0.1) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.weight = positive("weight", weight)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss, to which the cross-entropy is added with weight 1."""
        own = self_correction_loss(student, target, temperature=self.temperature)
        return kd_loss(student, teacher, temperature=self.temperature) + self.weight * own

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"temperature={self.temperature}, weight={self.weight}"


class RevisionLoss(nn.Module):
    """:func:`revision_loss` with its options stored; it already contains the cross-entropy.

    Args:
        lambda1: Weight of the logits' squared error.
        lambda2: Weight of the probabilities' squared error.
        eta: How much of a wrong teacher's prediction remains, between 0 and 1.
    """

    def __init__(self, *, lambda1: float = 4.0, lambda2: float = 1.0, eta: float = 0.8) -> None:
        super().__init__()
        self.lambda1 = not_negative("lambda1", lambda1)
        self.lambda2 = not_negative("lambda2", lambda2)
        self.eta = share("eta", eta)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the student's logits against the teacher's and the labels."""
        return revision_loss(student, teacher, target, lambda1=self.lambda1, lambda2=self.lambda2, eta=self.eta)

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"lambda1={self.lambda1}, lambda2={self.lambda2}, eta={self.eta}"
