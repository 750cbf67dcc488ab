"""What students answer for the nodes of a split, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.graphs._features import csr, is_sparse, stack_rows
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.loaders import SampledNodes, WholeGraphs, evaluation_batches
from stillroom.graphs.node_data import NodeData
from stillroom.graphs.online.agreement import label_loss
from stillroom.graphs.options import Split
from stillroom.graphs.task import ask
from stillroom.training.evaluate import evaluation_mode, to_device

__all__ = ["Answers", "Evaluator", "measure_name", "micro_f1", "score"]


class Answers(NamedTuple):
    """What M students answer for the n nodes of a split.

    Shapes:
        logits: M tensors [n, C]; target: [n] int64, or [n, C] float of zeros and ones.
    """

    logits: list[Tensor]
    target: Tensor

    def scores(self) -> list[float]:
        """Return every student's score in percent."""
        return [score(each, self.target) for each in self.logits]

    def losses(self) -> list[float]:
        """Return every student's loss on the labels."""
        return [float(label_loss(each, self.target)) for each in self.logits]

    def ensemble(self) -> float:
        """Return the score of the mean of all students' logits."""
        return score(torch.stack(self.logits).mean(0), self.target)


def measure_name(multilabel: bool) -> str:
    """Return what :func:`score` computes: accuracy, or micro_f1 where nodes have several labels."""
    return "micro_f1" if multilabel else "accuracy"


def score(logits: Tensor, target: Tensor) -> float:
    """Return the accuracy, or of several labels a node the micro-F1 over all of them, in percent.

    Shapes:
        logits: [n, C]; target: [n] int64, or [n, C] float of zeros and ones.

    Example:
        >>> score(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        50.0
    """
    if target.ndim == 2:
        return micro_f1(logits, target)
    return 100 * int((logits.argmax(1) == target).sum()) / len(target)


def micro_f1(logits: Tensor, target: Tensor) -> float:
    """Return the F1 of all (node, label) pairs in percent, a label predicted where its probability is over 1/2.

    ``2 TP / (2 TP + FP + FN)``; 0 where nothing is predicted and nothing there.

    Shapes:
        logits: [n, C]; target: [n, C], zeros and ones.

    Example:
        >>> micro_f1(torch.tensor([[1.0, -1.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
        50.0
    """
    predicted, there = logits > 0, target > 0.5
    true_positive = int((predicted & there).sum())
    counted = int(predicted.sum()) + int(there.sum())
    return 200 * true_positive / counted if counted else 0.0


@dataclass(frozen=True)
class _Whole:
    """A whole graph, and the rows of each split in it."""

    batch: NodeBatch
    rows: dict[Split, Tensor]


class Evaluator:
    """Asks students about all nodes of the validation and test splits.

    Args:
        data: The graphs.
        device: Where the students are.
        layers: Message-passing layers of the students, for graphs too large to be taken whole: their nodes are then
            answered in batches with all neighbours so far away, unless a batch would reach most of the graph anyway.
            By default graphs are taken whole.
        batch_size: Nodes of such a batch.
        splits: Which splits.

    Raises:
        InputError: A split has no node.
    """

    def __init__(
        self,
        data: NodeData,
        *,
        device: torch.device | str = "cpu",
        layers: int | None = None,
        batch_size: int = 1024,
        splits: Sequence[Split] = ("val", "test"),
    ) -> None:
        self.device, self.splits = torch.device(device), tuple(splits)
        self._whole: list[_Whole] = []
        self._loaders = {}
        self._degrees: dict[Split, Tensor] = {}  # [2, N], edges that leave and enter every node of a loader's graph
        if layers is not None:
            self._loaders = {
                split: evaluation_batches(data.graphs, split, layers=layers, batch_size=batch_size, device=device)
                for split in self.splits
            }
            if any(_reaches_most(loader, data, split) for split, loader in self._loaders.items()):
                self._loaders = {}
        if not self._loaders:
            for split in self.splits:
                if not any(bool(graph[f"{split}_mask"].any()) for graph in data.graphs):
                    raise InputError(f"{data.name} has no {split} node to evaluate on; mark some in {split}_mask")
            for graph in data.graphs:
                rows = {split: graph[f"{split}_mask"].nonzero()[:, 0].to(device) for split in self.splits}
                if any(len(each) for each in rows.values()):
                    everything = torch.arange(len(graph.y))
                    batch = to_device(NodeBatch(graph.x, graph.edge_index, graph.y, everything), self.device)
                    self._whole.append(_Whole(batch, rows))
        else:
            for split in self.splits:
                used = [graph for graph in data.graphs if bool(graph[f"{split}_mask"].any())]
                degrees = [[torch.bincount(end, minlength=len(graph.y)) for end in graph.edge_index] for graph in used]
                self._degrees[split] = torch.cat([torch.stack(each) for each in degrees], 1).to(self.device)

    @property
    def sample(self) -> NodeBatch:
        """A graph of the last split, whole, or the neighbourhood of its first nodes."""
        if self._whole:
            return next(whole.batch for whole in reversed(self._whole) if len(whole.rows[self.splits[-1]]))
        return next(iter(self._loaders[self.splits[-1]].epoch(1)))

    def __call__(self, students: Sequence[nn.Module]) -> dict[Split, Answers]:
        """Return the answers for every split, students in evaluation mode and without graph."""
        found: dict[Split, list[tuple[list[Tensor], Tensor]]] = {split: [] for split in self.splits}
        with evaluation_mode(*students):
            for whole in self._whole:
                logits = [ask(student, whole.batch.x, whole.batch.edge_index).logits for student in students]
                for split, rows in whole.rows.items():
                    found[split].append(([each[rows].float() for each in logits], whole.batch.target[rows]))
            for split, loader in self._loaders.items():
                for batch in loader.epoch(1):
                    x, edge_index = batch.x, batch.edge_index
                    if any(getattr(student, "reads_degrees", True) for student in students):
                        x, edge_index = _with_degrees(batch, self._degrees[split])
                    logits = [ask(student, x, edge_index).logits for student in students]
                    picked = [each[batch.labelled].float() for each in logits]
                    found[split].append((picked, batch.target[batch.labelled]))
        answers = {}
        for split, parts in found.items():
            logits = [torch.cat([part[0][m] for part in parts]) for m in range(len(students))]
            answers[split] = Answers(logits, torch.cat([part[1] for part in parts]))
        return answers


def _reaches_most(loader: WholeGraphs | SampledNodes, data: NodeData, split: Split) -> bool:
    """Return whether the first batch of a split holds more than half of the nodes of the split's graphs."""
    nodes = sum(len(graph.y) for graph in data.graphs if bool(graph[f"{split}_mask"].any()))
    return 2 * next(iter(loader.epoch(1))).x.shape[0] > nodes


def _with_degrees(batch: NodeBatch, degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Add a node without features, and an edge from or to it for every edge of the whole graph that was left behind.

    Every node then has the degrees it has in the whole graph, which some layers divide by. The new node speaks to those
    only whose own neighbours are not in the batch, and nobody listens to these after the first layer.
    """
    nodes, features = batch.x.shape
    assert batch.nodes is not None
    edges = [batch.edge_index]
    for end in (0, 1):
        behind = degrees[end][batch.nodes] - torch.bincount(batch.edge_index[end], minlength=nodes)
        cut = torch.full((2, int(behind.sum())), nodes, device=behind.device)
        cut[end] = torch.repeat_interleave(behind)
        edges.append(cut)
    blank = batch.x.new_zeros(1, features) if not is_sparse(batch.x) else _blank_row(batch.x)
    return stack_rows([batch.x, blank]), torch.cat(edges, 1)


def _blank_row(x: Tensor) -> Tensor:
    return csr(x.crow_indices().new_zeros(2), x.col_indices()[:0], x.values()[:0], (1, x.shape[1]))
