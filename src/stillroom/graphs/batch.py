"""The batch of nodes every graph loader yields and every graph task takes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["NodeBatch"]


class NodeBatch(NamedTuple):
    """A graph, several disjoint ones, or a sampled part of one.

    Shapes:
        x: [N, F], float features, dense or sparse CSR.
        edge_index: [2, E], int64, row 0 the sources, row 1 the destinations.
        target: [N] int64 classes (-1 where unknown), or [N, C] float of zeros and ones for several labels a node.
        labelled: [n], int64, the rows of x whose labels count in this batch.
        complete: [N], bool, the nodes all of whose in-edges are in this batch; ``None`` says all are.
        nodes: [N], int64, the nodes' positions in the whole graph; ``None`` where the batch is whole graphs.
        turn: The one student this batch trains, where students learn in turns; ``None`` where all learn.
    """

    x: Tensor
    edge_index: Tensor
    target: Tensor
    labelled: Tensor
    complete: Tensor | None = None
    nodes: Tensor | None = None
    turn: int | None = None
