"""Edge lists in one canonical order, and what can be counted on them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.graphs.options import SelfLoops

__all__ = ["EdgeRepairs", "canonical_edges", "distinct", "edge_homophily", "in_degrees", "isolated_nodes"]


class EdgeRepairs(NamedTuple):
    """How many edges were merged with equal ones, added as the reverse of one, and removed as self loops."""

    duplicates: int = 0
    reverse: int = 0
    loops: int = 0


def canonical_edges(
    edge_index: Tensor, nodes: int, *, undirected: bool, self_loops: SelfLoops
) -> tuple[Tensor, EdgeRepairs]:
    """Return the edges sorted by destination, then source, each once, and what had to be done for it.

    Args:
        edge_index: Sources and destinations, checked to lie within the nodes.
        nodes: Nodes of the graph.
        undirected: Add the reverse of every edge.
        self_loops: Give every node one, keep those that are there, or remove them.

    Shapes:
        edge_index: [2, E], int64. Returns [2, E'].

    Example:
        >>> edges = torch.tensor([[2, 0, 0], [1, 1, 1]])
        >>> canonical_edges(edges, 3, undirected=True, self_loops="keep")
        (tensor([[1, 0, 2, 1],
                [0, 1, 1, 2]]), EdgeRepairs(duplicates=1, reverse=2, loops=0))
    """
    # One number an edge, in the wanted order; only lists that are not in it already are sorted.
    source, destination = edge_index.numpy()
    given = destination * nodes + source
    keys = distinct(given)
    duplicates, reverse, loops = len(given) - len(keys), 0, 0
    if undirected:
        back_destination, back_source = keys % nodes, keys // nodes
        back = np.sort(back_destination * nodes + back_source)
        if not np.array_equal(keys, back):
            both = distinct(np.concatenate([keys, back]))
            keys, reverse = both, len(both) - len(keys)
    if self_loops == "remove":
        others = keys[keys % (nodes + 1) != 0]  # the key of a loop at node v is v * (nodes + 1)
        keys, loops = others, len(keys) - len(others)
    elif self_loops == "add":
        keys = distinct(np.concatenate([keys, np.arange(nodes, dtype=np.int64) * (nodes + 1)]))
    edges = np.empty((2, len(keys)), dtype=np.int64)
    np.floor_divide(keys, nodes, out=edges[1])
    np.remainder(keys, nodes, out=edges[0])
    return torch.from_numpy(edges), EdgeRepairs(duplicates, reverse, loops)


def distinct(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the values in ascending order, each once; what is so already is returned as it is."""
    if len(keys) < 2 or bool((keys[1:] > keys[:-1]).all()):
        return keys
    ordered = np.sort(keys)
    once: NDArray[np.int64] = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    return once


def in_degrees(edge_index: Tensor, nodes: int) -> Tensor:
    """Count the edges into every node.

    Shapes:
        edge_index: [2, E], int64. Returns [N], int64.
    """
    return torch.bincount(edge_index[1], minlength=nodes)


def isolated_nodes(edge_index: Tensor, nodes: int) -> Tensor:
    """Mark the nodes without an edge from or to another node.

    Shapes:
        edge_index: [2, E], int64. Returns [N], bool.
    """
    others = edge_index[:, edge_index[0] != edge_index[1]]
    alone = torch.ones(nodes, dtype=torch.bool)
    alone[others.flatten()] = False
    return alone


def edge_homophily(edge_index: Tensor, target: Tensor) -> tuple[int, int]:
    """Count the edges between two nodes of known class, and those of them within one class; self loops do not count.

    Shapes:
        edge_index: [2, E], int64. target: [N], int64.
    """
    source, destination = edge_index
    first, second = target[source], target[destination]
    known = (first >= 0) & (second >= 0) & (source != destination)
    return int(known.sum()), int((known & (first == second)).sum())
