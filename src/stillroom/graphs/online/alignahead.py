"""Alignahead: each layer of a student takes the local structure of another layer of its peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stillroom.cards import Card, Paper, Quirk
from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online._method import Method, Output, equal_depths, label_losses, learner_of
from stillroom.graphs.online.agreement import total
from stillroom.graphs.structure import Kernel, check_kernel, edge_kernel, in_edge_log_softmax, structure_kl
from stillroom.losses.checks import not_negative

__all__ = ["Alignahead", "alignahead_loss", "cross_layer_loss", "paired_layer"]


def paired_layer(layer: int, layers: int, *, shift: int = 1, wrap: bool = True) -> int | None:
    """Return the peer's layer that a learner's layer takes from, ``layer - shift``.

    Args:
        layer: The learner's hidden layer, counted from 0.
        layers: L, hidden layers of both.
        shift: 1 is Alignahead's, 0 one to one, -1 Alignahead++'s.
        wrap: Count on from the other end where that is outside; else such a layer has no pair.

    Example:
        >>> [paired_layer(layer, 3) for layer in range(3)]
        [2, 0, 1]
    """
    other = layer - shift
    if 0 <= other < layers:
        return other
    return other % layers if wrap else None


def cross_layer_loss(
    log_learner: Sequence[Tensor],
    log_peers: Sequence[Sequence[Tensor]],
    edge_index: Tensor,
    num_nodes: int,
    *,
    shift: int = 1,
    wrap: bool = True,
    nodes: Tensor | None = None,
) -> Tensor:
    """Return ``1/(M-1) sum_j sum_l SKL(p^j_{l - shift} -> q_l)`` from the logarithms of local structures.

    Args:
        log_learner: Of the learner's L hidden layers.
        log_peers: Of those of every peer.
        edge_index: Sources and destinations.
        num_nodes: N.
        shift: See :func:`paired_layer`.
        wrap: See :func:`paired_layer`.
        nodes: See :func:`~stillroom.graphs.structure.structure_kl`.

    Shapes:
        every local structure: [E]; edge_index: [2, E].

    Returns:
        A scalar; 0 where no layer has a pair.

    Raises:
        InputError: There is no peer, or one of another depth.
    """
    layers = len(log_learner)
    if not log_peers:
        raise InputError("alignahead needs a peer to learn from; train at least 2 students")
    if any(len(each) != layers for each in log_peers):
        raise InputError(f"the learner has {layers} hidden layers, its peers {[len(each) for each in log_peers]}")
    pairs = [(layer, paired_layer(layer, layers, shift=shift, wrap=wrap)) for layer in range(layers)]
    terms = [
        structure_kl(log_peer[other], log_learner[layer], edge_index, num_nodes, nodes=nodes)
        for log_peer in log_peers
        for layer, other in pairs
        if other is not None
    ]
    return total(terms) / len(log_peers) if terms else log_learner[0][:0].sum()


def alignahead_loss(
    student: Sequence[Tensor],
    peers: Sequence[Sequence[Tensor]],
    edge_index: Tensor,
    *,
    shift: int = 1,
    wrap: bool = True,
    kernel: Kernel = "l1_exp",
    scale: float | Literal["auto"] = 100.0,
    nodes: Tensor | None = None,
) -> Tensor:
    """Return Alignahead's structure term of one student, without its weight.

    J. Guo, D. Chen, C. Wang, "Alignahead: Online Cross-Layer Knowledge Extraction on Graph Neural Networks", IJCNN
    2022: ``1/(M-1) sum_{j != m} sum_l SKL(w(sg[H^j_{l - shift}]) -> w(H^m_l))``, the layers counted modulo L, with w of
    :func:`~stillroom.graphs.structure.local_structure` and SKL of :func:`~stillroom.graphs.structure.structure_kl`.
    ``shift=0`` is the paper's one-to-one baseline (OC).

    Args:
        student: Outputs of its L hidden layers before the activation.
        peers: The same of every peer; no gradient flows to them. Widths may differ.
        edge_index: Sources and destinations.
        shift: See :func:`paired_layer`.
        wrap: See :func:`paired_layer`.
        kernel: See :func:`~stillroom.graphs.structure.edge_kernel`.
        scale: See :func:`~stillroom.graphs.structure.edge_kernel`.
        nodes: See :func:`~stillroom.graphs.structure.structure_kl`.

    Shapes:
        student: L tensors [N, D_l]; peers: M-1 times as many; edge_index: [2, E], int64.

    Returns:
        A scalar.

    Raises:
        InputError: There is no peer, or one of another depth.

    Example:
        >>> edges = torch.tensor([[0, 1, 2], [2, 2, 0]])
        >>> layers = [torch.tensor([[0.0], [50.0], [0.0]]), torch.zeros(3, 1)]
        >>> alignahead_loss(layers, [layers], edges, shift=0).item()
        0.0
        >>> bool(alignahead_loss(layers, [layers], edges) > 0)
        True
    """
    N = student[0].shape[0]

    def log_structure(hidden: Sequence[Tensor]) -> list[Tensor]:
        return [
            in_edge_log_softmax(edge_kernel(each, edge_index, kernel=kernel, scale=scale), edge_index, N)
            for each in hidden
        ]

    with torch.no_grad():
        others = [log_structure(hidden) for hidden in peers]
    return cross_layer_loss(log_structure(student), others, edge_index, N, shift=shift, wrap=wrap, nodes=nodes)


class Alignahead(Method):
    """Alignahead: students learn in turns, each layer taking the local structure of the layer before it in the others.

    Args:
        weight: a, the weight of the structure term.
        shift: How many layers further on the learner's layer lies than the peer's; 0 pairs equal layers (the paper's
            one-to-one baseline).
        kernel: Similarity of two neighbours' embeddings.
        scale: What distances are divided by; auto takes their mean, which narrow or normalised embeddings need.
    """

    card: ClassVar[Card] = Card(
        name="alignahead",
        summary="Students learn in turns; each layer takes the local structure of the layer before it in the others.",
        papers=(
            Paper(
                title="Alignahead: Online Cross-Layer Knowledge Extraction on Graph Neural Networks",
                authors="J. Guo, D. Chen, C. Wang",
                venue="IJCNN",
                year=2022,
                identifier="arXiv:2205.02468",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="Students start from weights of their own (unverified).",
                code="All are copies of one initialisation, so that on one whole graph they stay close.",
                default="neither",
                option="--init copy",
            ),
            Quirk(
                paper="F1 of the test set.",
                code="Thresholds logits at 0.5, averages F1 over batches, keeps an epoch if the training loss fell.",
                default="neither",
            ),
            Quirk(
                paper="Any number of layers.",
                code="A GAT of 2 layers skips one and takes the class layer for a hidden one.",
                default="paper",
            ),
            Quirk(
                paper="A scale of the kernel is not discussed (unverified).",
                code="100 whatever the width: narrow or normalised embeddings are all alike, the loss close to 0.",
                default="code",
                option="scale=auto",
            ),
        ),
    )
    in_turns: ClassVar[bool] = True

    def __init__(
        self,
        *,
        weight: float = 1.0,
        shift: int = 1,
        kernel: Kernel = "l1_exp",
        scale: float | Literal["auto"] = 100.0,
    ) -> None:
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.shift = shift
        check_kernel(kernel, scale)
        self.kernel: Kernel = kernel
        self.scale: float | Literal["auto"] = scale

    def build(self, outputs: Sequence[Output], *, multilabel: bool) -> None:
        """Make sure that all students are as deep."""
        super().build(outputs, multilabel=multilabel)
        equal_depths(outputs, self.card.name)

    def forward(self, outputs: Sequence[Output], batch: NodeBatch) -> dict[str, Tensor]:
        """Return the objective of the student whose turn it is; ``similarity`` is the mean of its kernel."""
        own = label_losses([outputs[learner_of(batch, outputs, self.card.name)]], batch)
        structure, similarity = self.structure(outputs, batch)
        return {
            "loss": own + self.weight * structure,
            "labels": own.detach(),
            "structure": structure.detach(),
            "similarity": similarity,
        }

    def structure(self, outputs: Sequence[Output], batch: NodeBatch) -> tuple[Tensor, Tensor]:
        """Return the structure term of the student whose turn it is, and the mean similarity of its neighbours."""
        m, N = learner_of(batch, outputs, self.card.name), batch.x.shape[0]

        def similarities(hidden: Sequence[Tensor]) -> list[Tensor]:
            return [edge_kernel(each, batch.edge_index, kernel=self.kernel, scale=self.scale) for each in hidden]

        def log_structure(values: Sequence[Tensor]) -> list[Tensor]:
            return [in_edge_log_softmax(each, batch.edge_index, N) for each in values]

        own = similarities(outputs[m].hidden)
        with torch.no_grad():
            others = [log_structure(similarities(each.hidden)) for j, each in enumerate(outputs) if j != m]
        loss = cross_layer_loss(
            log_structure(own), others, batch.edge_index, N, shift=self.shift, wrap=True, nodes=batch.complete
        )
        return loss, torch.stack([each.detach().mean() for each in own]).mean()
