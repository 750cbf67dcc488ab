"""ONE: students on a common first layer imitate the gated mixture of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online._method import Method, Output, equal_depths, label_losses, labelled
from stillroom.graphs.online.agreement import Kind, label_loss, prediction_kl, total
from stillroom.losses.checks import full_precision, not_negative, positive

__all__ = ["ONE", "Gate"]


class Gate(nn.Module):
    """Weigh the students node by node by the embedding they have in common: ``g = softmax(ReLU(BN(W h + b)))``.

    X. Lan, X. Zhu, S. Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, per node.

    Args:
        width: D of the common embedding.
        students: M.

    Shapes:
        hidden: [n, D]; logits: M tensors [n, C]; the result: [n, C]. In training n > 1, for the batch norm.

    Raises:
        InputError: A single node in training.
    """

    def __init__(self, width: int, students: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, students)
        self.bn = nn.BatchNorm1d(students)

    def forward(self, hidden: Tensor, logits: Sequence[Tensor]) -> Tensor:
        """Return the mixture of the students' logits."""
        if self.training and len(hidden) < 2:
            raise InputError(
                f"one needs at least 2 labelled nodes in every batch, not {len(hidden)}; change batch_size"
            )
        weights = F.softmax(full_precision(F.relu(self.bn(self.linear(hidden)))), dim=1)
        stacked = torch.stack([full_precision(each) for each in logits], dim=1)  # [n, M, C]
        return (weights[:, :, None] * stacked).sum(1)


class ONE(Method):
    """On-the-fly native ensemble: students with one first layer imitate their own gated mixture.

    ``L = sum_i CE(z_i, y) + CE(z_e, y) + weight sum_i KD(z_i, z_e)`` on the nodes that have labels, with z_e of
    :class:`Gate` on the activated output of the first hidden layer.

    Args:
        weight: Weight of the imitation.
        temperature: T, softens the predictions that are compared.
    """

    card: ClassVar[Card] = Card(
        name="one",
        summary="Students on a common first layer imitate a mixture of themselves that a gate weighs node by node.",
        papers=(
            Paper(
                title="Knowledge Distillation by On-the-Fly Native Ensemble",
                authors="X. Lan, X. Zhu, S. Gong",
                venue="NeurIPS",
                year=2018,
                identifier="arXiv:1806.04606",
            ),
        ),
        standing="derived",
        ledger=(
            Quirk(
                paper="Branches of an image classifier on a common trunk.",
                code="None for graphs: the common first layer and the gate on its embeddings are ours.",
                default="neither",
            ),
        ),
    )
    shares_first_layer: ClassVar[bool] = True

    gate: Gate

    def __init__(self, *, weight: float = 1.0, temperature: float = 3.0) -> None:
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.temperature = positive("temperature", temperature)

    def build(self, outputs: Sequence[Output], *, multilabel: bool) -> None:
        """Create the gate on the first hidden layer."""
        super().build(outputs, multilabel=multilabel)
        equal_depths(outputs, self.card.name)
        first = outputs[0].hidden[0]
        self.gate = Gate(first.shape[1], len(outputs)).to(first)

    def forward(self, outputs: Sequence[Output], batch: NodeBatch) -> dict[str, Tensor]:
        """Return the losses of all students and of their mixture, and the imitation."""
        logits, target = labelled(outputs, batch)
        common = outputs[0].activate(outputs[0].hidden[0]).index_select(0, batch.labelled)
        mixture = self.gate(common, logits)
        kind: Kind = "bernoulli" if self.multilabel else "softmax"
        own = label_losses(outputs, batch) + label_loss(mixture, target)
        mutual = total([prediction_kl(each, mixture, temperature=self.temperature, kind=kind) for each in logits])
        return {"loss": own + self.weight * mutual, "labels": own.detach(), "mutual": mutual.detach()}
