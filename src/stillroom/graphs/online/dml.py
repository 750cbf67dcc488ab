"""DML: students that imitate each other's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, get_args

from torch import Tensor

from stillroom.cards import Card, Paper, Quirk
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online._method import Compared, Method, Output, compared, label_losses, one_of
from stillroom.graphs.online.agreement import Kind, Reduction, check_peers, prediction_kl, total
from stillroom.losses.checks import not_negative, positive

__all__ = ["DML", "dml_loss"]


def dml_loss(
    logits: Sequence[Tensor],
    *,
    temperature: float = 3.0,
    kind: Kind = "softmax",
    reduction: Reduction = "batchmean",
    detach: bool = True,
) -> Tensor:
    """Return ``sum_i 1/(B-1) sum_{j != i} KD(z_i, z_j)``, deep mutual learning's term between peers.

    Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu, "Deep Mutual Learning", CVPR 2018.

    Args:
        logits: Of all peers.
        temperature: T.
        kind: See :func:`prediction_kl`.
        reduction: See :func:`prediction_kl`.
        detach: Let no gradient into the peer that is imitated, as the paper does and OAD's released code does not.

    Shapes:
        logits: B tensors [N, C].
    """
    check_peers(logits)
    imitated = [each.detach() for each in logits] if detach else logits
    terms = [
        prediction_kl(own, imitated[j], temperature=temperature, kind=kind, reduction=reduction)
        for i, own in enumerate(logits)
        for j in range(len(logits))
        if j != i
    ]
    return total(terms) / (len(logits) - 1)


class DML(Method):
    """Deep mutual learning between graph networks: ``L = sum_i CE(z_i, y) + weight D`` with D of :func:`dml_loss`.

    Args:
        weight: Weight of the term between students.
        temperature: T, softens the predictions that are compared.
        reduction: batchmean, or reference for the scale of OAD's released code (N C times less).
        detach: Let no gradient into the student that is imitated.
        nodes: Compare predictions at the nodes that have labels, or at all nodes.
    """

    card: ClassVar[Card] = Card(
        name="dml",
        summary="Every student imitates the predictions of each other one.",
        papers=(
            Paper(
                title="Deep Mutual Learning",
                authors="Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu",
                venue="CVPR",
                year=2018,
                identifier="arXiv:1706.00384",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The imitated network is a constant, and networks are updated in turns.",
                code="OAD's code, whose numbers are compared with: nothing is detached, and all are updated at once.",
                default="paper",
                option="detach",
            ),
            Quirk(
                paper="The divergence is averaged over the samples.",
                code="OAD's code averages over samples and classes and divides by the samples once more.",
                default="paper",
                option="reduction",
            ),
        ),
    )

    def __init__(
        self,
        *,
        weight: float = 1.0,
        temperature: float = 3.0,
        reduction: Reduction = "batchmean",
        detach: bool = True,
        nodes: Compared = "labelled",
    ) -> None:
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.temperature = positive("temperature", temperature)
        self.reduction: Reduction = one_of("reduction", reduction, get_args(Reduction))
        self.detach = detach
        self.nodes: Compared = one_of("nodes", nodes, get_args(Compared))

    def forward(self, outputs: Sequence[Output], batch: NodeBatch) -> dict[str, Tensor]:
        """Return the losses on the labels and between the students."""
        logits = compared(outputs, batch, self.nodes)
        kind: Kind = "bernoulli" if self.multilabel else "softmax"
        own = label_losses(outputs, batch)
        mutual = dml_loss(logits, temperature=self.temperature, kind=kind, reduction=self.reduction, detach=self.detach)
        return {"loss": own + self.weight * mutual, "labels": own.detach(), "mutual": mutual.detach()}
