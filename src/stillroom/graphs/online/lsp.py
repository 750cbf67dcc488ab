"""LSP between students: the last hidden layers of all come to see the same local structure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import ClassVar, Literal

from torch import Tensor

from stillroom.cards import Card, Paper, Quirk
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online._method import Method, Output, equal_depths, label_losses, one_of
from stillroom.graphs.online.agreement import check_peers, total
from stillroom.graphs.structure import Kernel, check_kernel, edge_kernel, in_edge_log_softmax, structure_kl
from stillroom.losses.checks import not_negative

__all__ = ["LSP"]


class LSP(Method):
    """Local structure preservation without a teacher: students take each other's structure at the last hidden layer.

    ``L = sum_i CE(z_i, y) + weight sum_i 1/(M-1) sum_{j != i} LSP(F_i, sg[F_j])`` with
    :func:`~stillroom.graphs.structure.lsp_loss`. With a trained teacher call that function in your own loop.

    Args:
        weight: Weight of the structure term.
        direction: Which distribution stands before the logarithm; student_teacher is LSP's.
        kernel: Similarity of two neighbours' embeddings.
        scale: What distances are divided by; auto takes their mean.
    """

    card: ClassVar[Card] = Card(
        name="lsp",
        summary="Students take each other's local structure at the last hidden layer, one to one.",
        papers=(
            Paper(
                title="Distilling Knowledge from Graph Convolutional Networks",
                authors="Y. Yang, J. Qiu, M. Song, D. Tao, X. Wang",
                venue="CVPR",
                year=2020,
                identifier="arXiv:2003.10477",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="A trained teacher, whose structure is a constant.",
                code="OAD's baseline, whose numbers are compared with: between students, nothing detached.",
                default="neither",
                option="lsp_loss",
            ),
        ),
    )

    def __init__(
        self,
        *,
        weight: float = 1.0,
        direction: Literal["student_teacher", "teacher_student"] = "student_teacher",
        kernel: Kernel = "l1_exp",
        scale: float | Literal["auto"] = 100.0,
    ) -> None:
        super().__init__()
        self.weight = not_negative("weight", weight)
        self.direction: Literal["student_teacher", "teacher_student"] = one_of(
            "direction", direction, ("student_teacher", "teacher_student")
        )
        check_kernel(kernel, scale)
        self.kernel: Kernel = kernel
        self.scale: float | Literal["auto"] = scale

    def build(self, outputs: Sequence[Output], *, multilabel: bool) -> None:
        """Make sure that there are hidden layers to compare."""
        super().build(outputs, multilabel=multilabel)
        equal_depths(outputs, self.card.name)
        check_peers([each.logits for each in outputs])

    def forward(self, outputs: Sequence[Output], batch: NodeBatch) -> dict[str, Tensor]:
        """Return the losses on the labels and between the structures."""
        own = label_losses(outputs, batch)
        edges, N = batch.edge_index, batch.x.shape[0]
        # What lsp_loss computes, each student's structure once and not once a pair.
        logs = [
            in_edge_log_softmax(edge_kernel(each, edges, kernel=self.kernel, scale=self.scale), edges, N)
            for each in (output.hidden[-1] for output in outputs)
        ]
        terms = []
        for mine, other in permutations(logs, 2):
            pair = (mine, other.detach()) if self.direction == "student_teacher" else (other.detach(), mine)
            terms.append(structure_kl(*pair, edges, N, nodes=batch.complete))
        structure = total(terms) / (len(logs) - 1)
        return {"loss": own + self.weight * structure, "labels": own.detach(), "structure": structure.detach()}
