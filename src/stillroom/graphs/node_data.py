"""Graphs with labelled nodes, checked and brought into one form once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stillroom.errors import InputError
from stillroom.graphs._checks import (
    SPLITS,
    checked_edges,
    checked_features,
    checked_labels,
    checked_masks,
    is_multilabel,
)
from stillroom.graphs._edges import EdgeRepairs, canonical_edges, edge_homophily, isolated_nodes
from stillroom.graphs._features import is_sparse, mostly_zero, rows_normalised, zero_rows
from stillroom.graphs._torch_geometric import Data
from stillroom.graphs.options import Normalise, SelfLoops

__all__ = ["NodeData", "Source", "node_data"]


class Source(NamedTuple):
    """What a reader found, not checked yet.

    Args:
        graphs: The graphs as they were stored.
        classes: How many classes they say to have, if they do.
        notes: What should be known about them.
    """

    graphs: list[Data]
    classes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class NodeData:
    """A data set for node classification, as :func:`node_data` makes it.

    The masks say what a graph is for: a transductive set is one graph with three masks, an inductive one several graphs
    with one full mask each.

    Args:
        name: What reports call it.
        graphs: Each with x, edge_index, y, train_mask, val_mask and test_mask.
        classes: Number of classes.
        multilabel: Whether a node has several labels.
        notes: What was repaired or should be known.

    Shapes:
        x: [N, F], float32, dense or sparse CSR.
        edge_index: [2, E], int64, sorted by destination, then source, without duplicates.
        y: [N] int64, -1 where unknown, or [N, C] float32 of zeros and ones.
        train_mask, val_mask, test_mask: [N], bool.
    """

    name: str
    graphs: tuple[Data, ...]
    classes: int
    multilabel: bool
    notes: tuple[str, ...] = ()

    @property
    def num_features(self) -> int:
        """Features of a node."""
        return int(self.graphs[0].x.shape[1])

    @property
    def sparse(self) -> bool:
        """Whether the features are sparse CSR."""
        return is_sparse(self.graphs[0].x)

    def describe(self) -> dict[str, Any]:
        """Return the counts that belong to every result.

        Edges are directed and do not include self loops. Homophily is the share of the edges between nodes of known
        class that stay within one; there is none for several labels a node or without such edges.
        """
        nodes = [len(graph.y) for graph in self.graphs]
        loops = sum(int((graph.edge_index[0] == graph.edge_index[1]).sum()) for graph in self.graphs)
        isolated = sum(
            int(isolated_nodes(graph.edge_index, count).sum()) for graph, count in zip(self.graphs, nodes, strict=True)
        )
        homophily = None
        if not self.multilabel:
            known, within = map(
                sum, zip(*(edge_homophily(graph.edge_index, graph.y) for graph in self.graphs), strict=True)
            )
            homophily = within / known if known else None
        return {
            "name": self.name,
            "graphs": len(self.graphs),
            "nodes": sum(nodes),
            "edges": sum(graph.edge_index.shape[1] for graph in self.graphs) - loops,
            "self_loops": loops,
            "isolated_nodes": isolated,
            "features": self.num_features,
            "classes": self.classes,
            "multilabel": self.multilabel,
            **{f"{split}_nodes": sum(int(graph[f"{split}_mask"].sum()) for graph in self.graphs) for split in SPLITS},
            "homophily": homophily,
            "notes": list(self.notes),
        }


def node_data(
    name: str,
    graphs: Data | Sequence[Data],
    *,
    classes: int | None = None,
    undirected: bool = True,
    self_loops: SelfLoops = "add",
    normalise: Normalise = "auto",
    notes: Sequence[str] = (),
) -> NodeData:
    """Check graphs and bring them into the one form everything here works on; the graphs given are left as they are.

    Args:
        name: What messages and reports call the data set.
        graphs: PyG's, with x, edge_index, y and the masks of the splits.
        classes: Number of classes; by default one more than the largest label.
        undirected: Add the reverse of every edge.
        self_loops: Give every node one, keep those that are there, or remove them.
        normalise: ``rows`` divides every row of features by its sum, ``auto`` does so where no feature is negative and
            most are zero (bags of words).
        notes: What is known about them already.

    Raises:
        InputError: Something in them is missing, damaged or contradictory, or a split is empty.

    Example:
        >>> masks = {f"{split}_mask": torch.arange(3) == place for place, split in enumerate(("train", "val", "test"))}
        >>> edges = torch.tensor([[0, 0], [1, 1]])
        >>> graph = Data(x=torch.ones(3, 2), edge_index=edges, y=torch.tensor([0, 1, 1]), **masks)
        >>> node_data("toy", graph).notes
        ('1 duplicate edge merged', '1 reverse edge added', '1 isolated node', 'classes without a training node: 1')
    """
    given = [graphs] if isinstance(graphs, Data) else list(graphs)
    if not given:
        raise InputError(f"{name} has no graph")
    checked, repairs = [], []
    for number, graph in enumerate(given):
        place = name if len(given) == 1 else f"{name}, graph {number}"
        one, repaired = _checked(graph, place, undirected=undirected, self_loops=self_loops)
        checked.append(one)
        repairs.append(repaired)
    multilabel, classes = _classes(checked, classes, name)
    widths = {int(graph.x.shape[1]) for graph in checked}
    if len(widths) > 1 or len({graph.x.layout for graph in checked}) > 1:
        raise InputError(f"{name}: the graphs differ in their features ({sorted(widths)} a node); all must be alike")
    for split in SPLITS:
        if not any(bool(graph[f"{split}_mask"].any()) for graph in checked):
            raise InputError(f"{name} has no {split} node; mark some in {split}_mask, or set data.split to random")
    said = [*notes, *_notes(checked, repairs, classes, multilabel=multilabel)]
    if _normalise(checked, normalise, name):
        said.append("feature rows divided by their sums")
    return NodeData(name, tuple(checked), classes, multilabel, tuple(said))


def _checked(graph: Data, place: str, *, undirected: bool, self_loops: SelfLoops) -> tuple[Data, EdgeRepairs]:
    y = checked_labels(graph.get("y"), place)
    x = checked_features(graph.get("x"), len(y), place)
    edges = checked_edges(graph.get("edge_index"), len(y), place)
    masks = checked_masks({split: graph.get(f"{split}_mask") for split in SPLITS}, y, place)
    edges, repairs = canonical_edges(edges, len(y), undirected=undirected, self_loops=self_loops)
    named = {f"{split}_mask": mask for split, mask in masks.items()}
    return Data(x=x, edge_index=edges, y=y, **named), repairs


def _classes(graphs: list[Data], classes: int | None, name: str) -> tuple[bool, int]:
    kinds = {graph.y.shape[1:] for graph in graphs}
    if len(kinds) > 1:
        raise InputError(f"{name}: the graphs differ in the form of their labels; all must have the same")
    multilabel = is_multilabel(graphs[0].y)
    found = int(graphs[0].y.shape[1]) if multilabel else 1 + max(int(graph.y.max()) for graph in graphs)
    if classes is not None and (found > classes or (multilabel and found != classes)):
        raise InputError(f"{name} is said to have {classes} classes, but its labels have {found}; correct one of them")
    classes = found if classes is None else classes
    if classes < 2:
        raise InputError(f"{name} has {classes} class; a classifier needs at least two")
    return multilabel, classes


def _normalise(graphs: list[Data], normalise: Normalise, name: str) -> bool:
    """Replace the features if asked to, and say whether that was done."""
    if normalise == "none" or (normalise == "auto" and not all(mostly_zero(graph.x) for graph in graphs)):
        return False
    for graph in graphs:
        values: Tensor = graph.x.values() if is_sparse(graph.x) else graph.x
        if bool((values < 0).any()):
            raise InputError(f"{name} has negative features, whose sums say nothing; set data.normalise to none")
        graph.x = rows_normalised(graph.x)
    return True


def _notes(graphs: list[Data], repairs: list[EdgeRepairs], classes: int, *, multilabel: bool) -> list[str]:
    duplicates, reverse, loops = (sum(counts) for counts in zip(*repairs, strict=True))
    isolated = sum(int(isolated_nodes(graph.edge_index, len(graph.y)).sum()) for graph in graphs)
    blank = sum(int(zero_rows(graph.x).sum()) for graph in graphs)
    if multilabel:
        unlabelled = sum(int((graph.y.sum(1) == 0).sum()) for graph in graphs)
    else:
        unlabelled = sum(int((graph.y < 0).sum()) for graph in graphs)
    counted = (
        (duplicates, "duplicate edge", "merged"),
        (reverse, "reverse edge", "added"),
        (loops, "self loop", "removed"),
        (isolated, "isolated node", ""),
        (blank, "node", "without features (all zero)"),
        (unlabelled, "node", "with none of the labels" if multilabel else "without a known label"),
    )
    said = [f"{count} {what}{'s' if count > 1 else ''} {then}".rstrip() for count, what, then in counted if count]
    if multilabel and all(bool((graph.y.sum(1) == 1).all()) for graph in graphs):
        said.append("every node has exactly one of the labels; given as class numbers they would exclude each other")
    trained = [graph.y[graph.train_mask] for graph in graphs]
    if multilabel:
        seen = torch.stack([target.sum(0) for target in trained]).sum(0)
    else:
        seen = torch.bincount(torch.cat(trained), minlength=classes)
    if (unseen := (seen == 0).nonzero().flatten().tolist()) and len(unseen) < classes:
        said.append(f"classes without a training node: {', '.join(map(str, unseen))}")
    return said
