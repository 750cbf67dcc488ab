"""Co-distillation of embeddings: every student's last hidden layer follows the mean of the others'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online._method import Method, Output, equal_depths, label_losses, one_of
from stillroom.graphs.online.agreement import Reduction, mean_of_others, prediction_kl, total
from stillroom.losses.checks import full_precision, not_negative, positive

__all__ = ["Codistill", "edge_codistill_loss", "feature_codistill_loss"]

EdgeValue = Literal["norm2", "norm1", "sigmoid"]


def feature_codistill_loss(
    features: Sequence[Tensor],
    *,
    kind: Literal["mse", "kl"] = "mse",
    temperature: float = 3.0,
    reduction: Reduction = "batchmean",
    detach: bool = True,
) -> Tensor:
    """Return the sum over students of the distance of their embeddings to the mean of the others'.

    Args:
        features: Embeddings of all students, equally wide.
        kind: mse, the mean over nodes and width; kl, of the softmax over the width.
        temperature: T of kl.
        reduction: Of kl, see :func:`~stillroom.graphs.online.agreement.prediction_kl`.
        detach: Let no gradient into the mean; OAD's released code does not detach it.

    Shapes:
        features: B tensors [N, D].

    Raises:
        InputError: Fewer than two students, or of different widths.
    """
    _equal_widths(features)
    targets = mean_of_others([each.detach() for each in features] if detach else features)
    pairs = list(zip(features, targets, strict=True))
    if kind == "mse":
        return total([F.mse_loss(full_precision(own), full_precision(target)) for own, target in pairs])
    if kind != "kl":
        raise InputError(f"kind must be mse or kl, not {kind!r}")
    return total([prediction_kl(own, mean, temperature=temperature, reduction=reduction) for own, mean in pairs])


def edge_codistill_loss(features: Sequence[Tensor], edge_index: Tensor, *, edge_value: EdgeValue = "norm2") -> Tensor:
    """Return the sum over students of the divergence of their edges' distribution from that of the others' mean.

    Every edge has a value, the L2 norm of the difference of its ends' embeddings, their L1 norm, or the sigmoid of the
    L2 norm; a softmax over *all* edges of the graph makes a distribution of them, and the terms
    ``p (log p - log q)`` are averaged over the edges, as in OAD's released code. The mean of the others is detached.

    Args:
        features: Embeddings of all students, equally wide.
        edge_index: Sources and destinations.
        edge_value: norm2, norm1 or sigmoid.

    Shapes:
        features: B tensors [N, D]; edge_index: [2, E], int64.

    Raises:
        InputError: Fewer than two students, of different widths, or an unknown value.
    """
    _equal_widths(features)
    targets = mean_of_others([each.detach() for each in features])

    def log_distribution(each: Tensor) -> Tensor:
        return F.log_softmax(_edge_values(full_precision(each), edge_index, edge_value), dim=0)

    terms = []
    for own, target in zip(features, targets, strict=True):
        log_p, log_q = log_distribution(target), log_distribution(own)
        terms.append((log_p.exp() * (log_p - log_q)).sum() / max(edge_index.shape[1], 1))  # 0 without edges
    return total(terms)


def _edge_values(features: Tensor, edge_index: Tensor, edge_value: EdgeValue) -> Tensor:
    difference = features.index_select(0, edge_index[0]) - features.index_select(0, edge_index[1])
    if edge_value == "norm1":
        return difference.abs().sum(1)
    if edge_value not in ("norm2", "sigmoid"):
        raise InputError(f"edge_value must be norm2, norm1 or sigmoid, not {edge_value!r}")
    norm: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return norm if edge_value == "norm2" else norm.sigmoid()


def _equal_widths(features: Sequence[Tensor]) -> None:
    if len({each.shape for each in features}) > 1:
        shown = ", ".join(str(list(each.shape)) for each in features)
        raise InputError(f"co-distillation compares the students' embeddings, which must have one shape, not {shown}")


class Codistill(Method):
    """Co-distillation of the last hidden layer: embeddings, or the edges they make, follow the mean of the others'.

    Args:
        weight: Weight of the term between students.
        of: What follows the others: features, or edges.
        kind: Distance of features: mse or kl.
        edge_value: Value of an edge: norm2, norm1 or sigmoid.
        temperature: T of kl.
    """

    card: ClassVar[Card] = Card(
        name="codistill",
        summary="Every student's last hidden layer, or the edges it makes, follows the mean of the others.",
        papers=(
            Paper(
                title="Online Adversarial Knowledge Distillation for Graph Neural Networks",
                authors="C. Wang, Z. Wang, D. Chen, S. Zhou, Y. Feng, C. Chen",
                venue="Expert Systems with Applications 237",
                year=2024,
                identifier="arXiv:2112.13966",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The mean of the others is a target (unverified).",
                code="Gradient flows into it for features, and not for edges.",
                default="paper",
                option="feature_codistill_loss(detach=False)",
            ),
            Quirk(
                paper="Similarities of the ends by cosine, too.",
                code="Divides by the norms of the whole matrices of features.",
                default="neither",
            ),
        ),
    )

    def __init__(
        self,
        *,
        weight: float = 1.0,
        of: Literal["features", "edges"] = "features",
        kind: Literal["mse", "kl"] = "mse",
        edge_value: EdgeValue = "norm2",
        temperature: float = 3.0,
    ) -> None:
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.temperature = positive("temperature", temperature)
        self.of: Literal["features", "edges"] = one_of("of", of, ("features", "edges"))
        self.kind: Literal["mse", "kl"] = one_of("kind", kind, ("mse", "kl"))
        self.edge_value: EdgeValue = one_of("edge_value", edge_value, get_args(EdgeValue))

    def build(self, outputs: Sequence[Output], *, multilabel: bool) -> None:
        """Make sure that the last hidden layers can be compared."""
        super().build(outputs, multilabel=multilabel)
        equal_depths(outputs, self.card.name)
        self._term([output.hidden[-1] for output in outputs], outputs[0].logits.new_zeros(2, 0).long())

    def forward(self, outputs: Sequence[Output], batch: NodeBatch) -> dict[str, Tensor]:
        """Return the losses on the labels and between the embeddings."""
        own = label_losses(outputs, batch)
        mutual = self._term([output.hidden[-1] for output in outputs], batch.edge_index)
        return {"loss": own + self.weight * mutual, "labels": own.detach(), "mutual": mutual.detach()}

    def _term(self, last: Sequence[Tensor], edge_index: Tensor) -> Tensor:
        if self.of == "edges":
            return edge_codistill_loss(last, edge_index, edge_value=self.edge_value)
        return feature_codistill_loss(last, kind=self.kind, temperature=self.temperature)
