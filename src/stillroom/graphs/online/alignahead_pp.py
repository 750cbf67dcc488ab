"""Alignahead++: structure and features of another layer, and a classifier at every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor, nn

from stillroom.cards import Card, Paper
from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online._method import Method, Output, equal_depths, learner_of
from stillroom.graphs.online.agreement import label_loss, total
from stillroom.graphs.online.alignahead import alignahead_loss, paired_layer
from stillroom.graphs.structure import Kernel, check_kernel
from stillroom.losses.checks import full_precision, not_negative

__all__ = ["AlignaheadPP", "alignahead_pp_loss", "feature_loss"]


def feature_loss(
    student: Sequence[Tensor], peers: Sequence[Sequence[Tensor]], *, shift: int = -1, wrap: bool = True
) -> Tensor:
    """Return ``1/(M-1) sum_j sum_l mean((H_l - H^j_{l - shift})^2)``, the mean over nodes and width.

    Args:
        student: Outputs of its L hidden layers before the activation.
        peers: The same of every peer, as wide as the layers they are compared with; they are not detached here, as a
            map to another width learns.
        shift: See :func:`~stillroom.graphs.online.alignahead.paired_layer`.
        wrap: See :func:`~stillroom.graphs.online.alignahead.paired_layer`.

    Shapes:
        student: L tensors [N, D_l]; peers: M-1 times as many.

    Raises:
        InputError: There is no peer, or two layers that are compared differ in width.
    """
    if not peers:
        raise InputError("alignahead_pp needs a peer to learn from; train at least 2 students")
    layers = len(student)
    terms = []
    for layer, own in enumerate(student):
        other = paired_layer(layer, layers, shift=shift, wrap=wrap)
        if other is None:
            continue
        for hidden in peers:
            if hidden[other].shape != own.shape:
                raise InputError(
                    f"layer {layer} is {list(own.shape)} and the peer's layer {other} {list(hidden[other].shape)}; map "
                    "one to the other's width first"
                )
            terms.append((full_precision(own) - full_precision(hidden[other])).square().mean())
    return total(terms) / len(peers) if terms else student[0][:0].sum()


def alignahead_pp_loss(
    student: Sequence[Tensor],
    peers: Sequence[Sequence[Tensor]],
    logits: Tensor,
    aux_logits: Sequence[Tensor],
    target: Tensor,
    edge_index: Tensor,
    *,
    structure_weight: float = 1.0,
    feature_weight: float = 0.1,
    aux_weight: float = 0.5,
    shift: int = -1,
    wrap: bool = True,
    kernel: Kernel = "l1_exp",
    scale: float | Literal["auto"] = 100.0,
    nodes: Tensor | None = None,
    mapped: Sequence[Sequence[Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Return Alignahead++'s objective of one student, with its terms.

    J. Guo, D. Chen, C. Wang, "Online Cross-Layer Knowledge Distillation on Graph Neural Networks with Deep
    Supervision", 2022: ``L = CE(z) + beta 1/L sum_l CE(aux_l) + a L_str + b L_feat``. Only the abstract was available;
    the completion is ours.

    Args:
        student: Outputs of its L hidden layers before the activation.
        peers: The same of every peer; no gradient flows to them.
        logits: The student's, of the nodes that have labels.
        aux_logits: Of its L auxiliary classifiers, of the same nodes.
        target: Labels of these nodes.
        edge_index: Sources and destinations.
        structure_weight: a.
        feature_weight: b.
        aux_weight: beta.
        shift: See :func:`~stillroom.graphs.online.alignahead.paired_layer`; -1 takes from the layer after.
        wrap: See :func:`~stillroom.graphs.online.alignahead.paired_layer`.
        kernel: See :func:`~stillroom.graphs.structure.edge_kernel`.
        scale: See :func:`~stillroom.graphs.structure.edge_kernel`.
        nodes: See :func:`~stillroom.graphs.structure.structure_kl`.
        mapped: The peers' layers as the feature term takes them, where they had to be mapped to the student's widths.

    Shapes:
        student: L tensors [N, D_l]; peers: M-1 times as many; logits, aux_logits: [n, C]; target: [n] or [n, C].

    Returns:
        ``loss`` and its terms ``labels``, ``aux``, ``structure`` and ``features``, scalars.

    Raises:
        InputError: There is no peer, or layers that cannot be compared.
    """
    labels = label_loss(logits, target)
    aux = total([label_loss(each, target) for each in aux_logits]) / len(aux_logits)
    structure = alignahead_loss(
        student, peers, edge_index, shift=shift, wrap=wrap, kernel=kernel, scale=scale, nodes=nodes
    )
    if mapped is None:
        mapped = [[each.detach() for each in hidden] for hidden in peers]
    features = feature_loss(student, mapped, shift=shift, wrap=wrap)
    loss = labels + aux_weight * aux + structure_weight * structure + feature_weight * features
    return {"loss": loss, "labels": labels, "aux": aux, "structure": structure, "features": features}


class AlignaheadPP(Method):
    """Alignahead++: like Alignahead with the next layer's structure and features, and a classifier at every layer.

    The auxiliary classifiers, one linear map of each hidden layer, are left behind when a student is deployed.

    Args:
        structure_weight: a, the weight of the structure term.
        feature_weight: b, the weight of the feature term.
        aux_weight: beta, the weight of the auxiliary classifiers' losses.
        shift: How many layers further on the learner's layer lies than the peer's; -1 takes from the layer after.
        wrap: Pair layers beyond the last one with the first ones, else leave them out.
        kernel: Similarity of two neighbours' embeddings.
        scale: What distances are divided by; auto takes their mean, which narrow or normalised embeddings need.
    """

    card: ClassVar[Card] = Card(
        name="alignahead_pp",
        summary="Alignahead with the next layer's structure and features and a classifier at each layer; ours in part.",
        papers=(
            Paper(
                title="Online Cross-Layer Knowledge Distillation on Graph Neural Networks with Deep Supervision",
                authors="J. Guo, D. Chen, C. Wang",
                venue="arXiv",
                year=2022,
                identifier="arXiv:2210.13743",
            ),
        ),
        standing="reconstructed",
    )
    in_turns: ClassVar[bool] = True

    aux: nn.ModuleList
    maps: nn.ModuleDict

    def __init__(
        self,
        *,
        structure_weight: float = 1.0,
        feature_weight: float = 0.1,
        aux_weight: float = 0.5,
        shift: int = -1,
        wrap: bool = True,
        kernel: Kernel = "l1_exp",
        scale: float | Literal["auto"] = 100.0,
    ) -> None:
        super().__init__()
        self.structure_weight = not_negative("structure_weight", structure_weight)
        self.feature_weight = not_negative("feature_weight", feature_weight)
        self.aux_weight = not_negative("aux_weight", aux_weight)
        self.shift, self.wrap = shift, wrap
        check_kernel(kernel, scale)
        self.kernel: Kernel = kernel
        self.scale: float | Literal["auto"] = scale

    def build(self, outputs: Sequence[Output], *, multilabel: bool) -> None:
        """Create every student's auxiliary classifiers, and maps from its peers' layers where widths differ."""
        super().build(outputs, multilabel=multilabel)
        layers = equal_depths(outputs, self.card.name)
        like = outputs[0].logits
        self.aux = nn.ModuleList(
            nn.ModuleList(nn.Linear(hidden.shape[1], like.shape[1]) for hidden in output.hidden) for output in outputs
        ).to(like)
        self.maps = nn.ModuleDict()
        for m, learner in enumerate(outputs):
            for layer, own in enumerate(learner.hidden):
                other = paired_layer(layer, layers, shift=self.shift, wrap=self.wrap)
                for j, peer in enumerate(outputs):
                    if j == m or other is None or peer.hidden[other].shape[1] == own.shape[1]:
                        continue
                    width = peer.hidden[other].shape[1]
                    self.maps[_place(m, j, other)] = nn.Linear(width, own.shape[1], bias=False).to(like)

    def forward(self, outputs: Sequence[Output], batch: NodeBatch) -> dict[str, Tensor]:
        """Return the objective of the student whose turn it is."""
        m = learner_of(batch, outputs, self.card.name)
        learner, peers = outputs[m], [j for j in range(len(outputs)) if j != m]
        picked = [learner.activate(hidden).index_select(0, batch.labelled) for hidden in learner.hidden]
        mapped = [[self._map(m, j, layer, hidden) for layer, hidden in enumerate(outputs[j].hidden)] for j in peers]
        parts = alignahead_pp_loss(
            learner.hidden,
            [outputs[j].hidden for j in peers],
            learner.logits.index_select(0, batch.labelled),
            [classify(each) for classify, each in zip(self.aux[m], picked, strict=True)],  # type: ignore[call-overload]
            batch.target.index_select(0, batch.labelled),
            batch.edge_index,
            structure_weight=self.structure_weight,
            feature_weight=self.feature_weight,
            aux_weight=self.aux_weight,
            shift=self.shift,
            wrap=self.wrap,
            kernel=self.kernel,
            scale=self.scale,
            nodes=batch.complete,
            mapped=mapped,
        )
        return {"loss": parts.pop("loss"), **{name: part.detach() for name, part in parts.items()}}

    def _map(self, learner: int, peer: int, layer: int, hidden: Tensor) -> Tensor:
        place = _place(learner, peer, layer)
        mapped: Tensor = self.maps[place](hidden.detach()) if place in self.maps else hidden.detach()
        return mapped


def _place(learner: int, peer: int, layer: int) -> str:
    return f"{learner}_from_{peer}_layer_{layer}"
