"""What students learn from each other's class predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, positive

__all__ = [
    "Kind",
    "Reduction",
    "check_peers",
    "label_loss",
    "mean_of_others",
    "mean_of_others_loss",
    "prediction_kl",
    "total",
]

Kind = Literal["softmax", "bernoulli"]
Reduction = Literal["batchmean", "reference"]


def label_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the loss of one network on labels: cross-entropy, or for several labels a node binary cross-entropy.

    Shapes:
        logits: [N, C]; target: [N] int64 classes, or [N, C] float of zeros and ones (mean over N C).

    Raises:
        InputError: The target is of another type or shape, or there is no node.
    """
    if logits.shape[0] == 0:
        raise InputError("there is no labelled node in the batch")
    logits = full_precision(logits)
    if target.shape == logits.shape[:1] and target.dtype is torch.int64:
        return F.cross_entropy(logits, target)
    if target.shape == logits.shape and target.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
    raise InputError(
        f"target must be {list(logits.shape[:1])} int64 classes or {list(logits.shape)} floats for several labels a "
        f"node, not {list(target.shape)} {target.dtype}"
    )


def prediction_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 3.0,
    kind: Kind = "softmax",
    reduction: Reduction = "batchmean",
) -> Tensor:
    """Return how far the student's class predictions are from the teacher's; whoever must not learn is to be detached.

    ``softmax``: ``T^2 1/N sum_n KL(softmax(t_n / T) || softmax(s_n / T))``. ``bernoulli``, for several labels a node:
    ``T^2 mean_{n,c} KL(Bern(sigma(t / T)) || Bern(sigma(s / T)))``.

    Args:
        student: Logits of the one that learns.
        teacher: Logits of the one that is imitated.
        temperature: T.
        kind: What the logits mean.
        reduction: ``reference`` divides the softmax form by N C once more, as OAD's released code does: on the 140
            training nodes and 7 classes of Cora that is 980 times less.

    Shapes:
        student, teacher: [N, C].

    Returns:
        A scalar.

    Raises:
        InputError: Shapes differ, there is no node, or an option is out of range.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0, 0.0]])
        >>> print(f"{prediction_kl(student, teacher, temperature=4.0):.4f}")
        4.1185
    """
    if student.ndim != 2 or student.shape != teacher.shape or 0 in student.shape:
        raise InputError(f"logits must be two equal [N, C], not {list(student.shape)} and {list(teacher.shape)}")
    positive("temperature", temperature)
    student, teacher = full_precision(student) / temperature, full_precision(teacher) / temperature
    if kind == "bernoulli":
        # With logits: p log(p/q) + (1-p) log((1-p)/(1-q)).
        probability = teacher.sigmoid()
        yes = F.logsigmoid(teacher) - F.logsigmoid(student)
        no = F.logsigmoid(-teacher) - F.logsigmoid(-student)
        return temperature**2 * (probability * yes + (1 - probability) * no).mean()
    if kind != "softmax":
        raise InputError(f"kind must be softmax or bernoulli, not {kind!r}")
    log_p, log_q = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    value = temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    if reduction == "batchmean":
        return value
    if reduction != "reference":
        raise InputError(f"reduction must be batchmean or reference, not {reduction!r}")
    return value / student.numel()


def check_peers(logits: Sequence[Tensor]) -> None:
    """Refuse fewer than two networks, or logits of different shapes.

    Raises:
        InputError: It is so.
    """
    if len(logits) < 2:
        raise InputError(f"students learn from each other, so there must be at least 2, not {len(logits)}")
    if len({each.shape for each in logits}) > 1:
        shown = ", ".join(str(list(each.shape)) for each in logits)
        raise InputError(f"students that learn from each other need logits of one shape, not {shown}")


def mean_of_others(logits: Sequence[Tensor]) -> list[Tensor]:
    """Return for each network the mean of the logits of all others, in at least float32.

    Raises:
        InputError: There are fewer than two, or of different shapes.
    """
    check_peers(logits)
    # Own logits are left out, not subtracted from the sum of all: large ones would take the others' digits with them.
    return [
        total([full_precision(each) for j, each in enumerate(logits) if j != i]) / (len(logits) - 1)
        for i in range(len(logits))
    ]


def mean_of_others_loss(
    logits: Sequence[Tensor],
    *,
    temperature: float = 3.0,
    kind: Kind = "softmax",
    reduction: Reduction = "batchmean",
) -> Tensor:
    """Return ``sum_i KD(z_i, sg[mean_{j != i} z_j])``, OAD's global knowledge (its section on class predictions).

    Shapes:
        logits: B tensors [N, C] of the nodes that are compared.
    """
    targets = mean_of_others([each.detach() for each in logits])
    return total(
        [
            prediction_kl(own, target, temperature=temperature, kind=kind, reduction=reduction)
            for own, target in zip(logits, targets, strict=True)
        ]
    )


def total(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape."""
    return torch.stack(list(terms)).sum(0)
