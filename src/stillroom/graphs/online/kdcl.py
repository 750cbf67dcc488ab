"""KDCL: students that imitate one soft target made of them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online._method import Method, Output, label_losses, labelled, one_of
from stillroom.graphs.online.agreement import Reduction, check_peers, prediction_kl, total
from stillroom.losses.checks import full_precision, not_negative, positive

__all__ = ["KDCL", "kdcl_loss"]


def kdcl_loss(
    logits: Sequence[Tensor],
    target: Tensor,
    *,
    teacher: Literal["naive", "minlogit"] = "naive",
    temperature: float = 3.0,
    reduction: Reduction = "batchmean",
) -> Tensor:
    """Return the term of collaborative learning: all imitate one soft target made of all.

    Q. Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020. ``naive``: the target is the
    network with the lowest cross-entropy on these nodes, which itself learns nothing from the term. ``minlogit``:
    ``sg[min_i (z_i - z_i,y)]`` class by class.

    Args:
        logits: Of all peers.
        target: Classes.
        teacher: How the soft target is made.
        temperature: T.
        reduction: See :func:`prediction_kl`.

    Shapes:
        logits: B tensors [N, C]; target: [N], int64.
    """
    check_peers(logits)
    if target.dtype is not torch.int64 or target.shape != logits[0].shape[:1]:
        raise InputError("kdcl compares logits with the logit of the right class, so every node must have one class")
    stacked = torch.stack([full_precision(each) for each in logits])  # [B, N, C]
    if teacher == "minlogit":
        right = stacked.gather(2, target[None, :, None].expand(len(logits), -1, 1))
        soft = (stacked - right).amin(0).detach()
        return total([prediction_kl(own, soft, temperature=temperature, reduction=reduction) for own in logits])
    if teacher != "naive":
        raise InputError(f"teacher must be naive or minlogit, not {teacher!r}")
    entropies = torch.stack([F.cross_entropy(own, target) for own in stacked.detach()])
    # The best one's divergence from itself is 0, with a gradient of 0.
    soft = stacked.detach().index_select(0, entropies.argmin(keepdim=True))[0]
    return total([prediction_kl(own, soft, temperature=temperature, reduction=reduction) for own in logits])


class KDCL(Method):
    """Collaborative learning between graph neural networks, on the nodes that have labels; one label a node.

    Args:
        weight: Weight of the term between students.
        teacher: The soft target: naive takes the student that is best on these nodes, minlogit the least odds against
            the right class among all.
        temperature: T, softens the predictions that are compared.
        reduction: batchmean, or reference for the scale of OAD's released code (N C times less).
    """

    card: ClassVar[Card] = Card(
        name="kdcl",
        summary="All students imitate one soft target: the best of them, or the least certain mixture.",
        papers=(
            Paper(
                title="Online Knowledge Distillation via Collaborative Learning",
                authors="Q. Guo, X. Wang, Y. Wu, Z. Yu, D. Liang, X. Hu, P. Luo",
                venue="CVPR",
                year=2020,
                identifier="CVPR 2020",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The divergence is averaged over the samples.",
                code="OAD's code, whose numbers are compared with, averages over classes too and divides by the "
                "samples once more.",
                default="paper",
                option="reduction",
            ),
        ),
    )

    def __init__(
        self,
        *,
        weight: float = 1.0,
        teacher: Literal["naive", "minlogit"] = "naive",
        temperature: float = 3.0,
        reduction: Reduction = "batchmean",
    ) -> None:
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.temperature = positive("temperature", temperature)
        self.teacher: Literal["naive", "minlogit"] = one_of("teacher", teacher, ("naive", "minlogit"))
        self.reduction: Reduction = one_of("reduction", reduction, get_args(Reduction))

    def build(self, outputs: Sequence[Output], *, multilabel: bool) -> None:
        """Refuse several labels a node."""
        super().build(outputs, multilabel=multilabel)
        if multilabel:
            raise InputError("kdcl needs one class a node and these have several labels; dml and oad take them")

    def forward(self, outputs: Sequence[Output], batch: NodeBatch) -> dict[str, Tensor]:
        """Return the losses on the labels and to the common target."""
        logits, target = labelled(outputs, batch)
        own = label_losses(outputs, batch)
        mutual = kdcl_loss(logits, target, teacher=self.teacher, temperature=self.temperature, reduction=self.reduction)
        return {"loss": own + self.weight * mutual, "labels": own.detach(), "mutual": mutual.detach()}
