"""Loaders of node batches: whole graphs and sampled neighbourhoods, the same ones for the same epoch and step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.data.split import random_stream
from stillroom.errors import InputError
from stillroom.graphs._features import stack_rows, take_rows
from stillroom.graphs._torch_geometric import Data
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.options import Split
from stillroom.graphs.sampler import UniformSampler

__all__ = ["SampledNodes", "WholeGraphs", "as_batch", "evaluation_batches", "merge"]

# Purposes of the random streams of one seed.
_ORDER, _NEIGHBOURS = 10, 11


def as_batch(data: Data, mask: str = "train_mask", *, in_degrees: Tensor | None = None) -> NodeBatch:
    """Return a whole graph of PyG, or a batch of its ``NeighborLoader`` or ``NodeLoader``, as a batch.

    Args:
        data: The graph; in what those loaders yield the seed nodes count as labelled, whatever the mask says.
        mask: The attribute that marks the labelled nodes.
        in_degrees: The number of in-edges of every node of the whole graph, to tell which nodes of a sampled batch have
            all of theirs in it.

    Shapes:
        in_degrees: [nodes of the whole graph], int64.

    Raises:
        InputError: There is no such mask, or the degrees are missing.

    Example:
        >>> graph = Data(x=torch.ones(2, 3), edge_index=torch.tensor([[0], [1]]), y=torch.tensor([0, 1]))
        >>> graph.train_mask = torch.tensor([True, False])
        >>> as_batch(graph).labelled
        tensor([0])
    """
    if "n_id" not in data or "batch_size" not in data:
        if mask not in data:
            raise InputError(f"the graph has no {mask}; mark in it the nodes whose labels count")
        return NodeBatch(data.x, data.edge_index, data.y, data[mask].nonzero().flatten())
    if in_degrees is None:
        raise InputError("a sampled batch needs in_degrees=..., those of the whole graph, to know its complete nodes")
    labelled = torch.arange(data.batch_size, device=data.n_id.device)
    inside = torch.bincount(data.edge_index[1], minlength=len(data.n_id))
    complete = inside == in_degrees.to(inside.device)[data.n_id]
    return NodeBatch(data.x, data.edge_index, data.y, labelled, complete, data.n_id)


def merge(batches: Sequence[NodeBatch]) -> NodeBatch:
    """Return whole graphs as one disjoint graph, in their order.

    Example:
        >>> one = NodeBatch(torch.ones(2, 1), torch.tensor([[0], [1]]), torch.tensor([0, 1]), torch.tensor([0]))
        >>> merge([one, one]).edge_index
        tensor([[0, 2],
                [1, 3]])
    """
    if len(batches) == 1:
        return batches[0]
    edges, labelled, before = [], [], 0
    for batch in batches:
        edges.append(batch.edge_index + before)
        labelled.append(batch.labelled + before)
        before += batch.x.shape[0]
    return NodeBatch(
        stack_rows([batch.x for batch in batches]),
        torch.cat(edges, 1),
        torch.cat([batch.target for batch in batches]),
        torch.cat(labelled),
    )


class WholeGraphs:
    """Batches of whole graphs: all that have a node of the split, in a new order every epoch.

    What is always the same batch - one graph, or as many as fit into one - is made once.

    Args:
        graphs: As :class:`NodeData` holds them.
        split: The nodes that count as labelled.
        graphs_per_batch: Graphs that are merged into one batch; the last batch of an epoch may have fewer.
        seed: Seed of the order.
        shuffle: Whether there is a new order every epoch; otherwise it is the graphs' own.
        device: Where the batches are; the graphs move there once.

    Raises:
        InputError: No graph has a node of the split.

    Example:
        >>> graph = Data(x=torch.ones(2, 3), edge_index=torch.tensor([[0], [1]]), y=torch.tensor([0, 1]))
        >>> graph.train_mask = torch.tensor([True, False])
        >>> [len(batch.x) for batch in WholeGraphs([graph] * 3, graphs_per_batch=2).epoch(1)]
        [4, 2]
    """

    def __init__(
        self,
        graphs: Sequence[Data],
        *,
        split: Split = "train",
        graphs_per_batch: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if graphs_per_batch < 1:
            raise InputError(f"graphs_per_batch is {graphs_per_batch}; it must be at least 1")
        self.graphs_per_batch, self.seed, self.shuffle = graphs_per_batch, seed, shuffle
        batches = [_to(batch, torch.device(device)) for batch in _with_split(graphs, split)]
        self._batches = batches if len(batches) > graphs_per_batch else [merge(batches)]

    def __len__(self) -> int:
        """Count the steps of an epoch."""
        return -(-len(self._batches) // self.graphs_per_batch)

    def epoch(self, number: int, start: int = 0) -> Iterator[NodeBatch]:
        """Yield the batches of epoch ``number`` (counted from 1), from step ``start`` on, always the same ones."""
        for step in torch.split(_order(len(self._batches), self.shuffle, self.seed, number), self.graphs_per_batch)[
            start:
        ]:
            yield merge([self._batches[place] for place in step.tolist()])


class SampledNodes:
    """Batches of seed nodes of a split with a sampled neighbourhood.

    The seed nodes come first in a batch and are its only labelled ones. Order and neighbours depend on (seed, epoch,
    step), so an epoch that is entered late does not draw what came before. Several graphs are sampled as one disjoint
    graph; ``nodes`` are positions in it.

    Args:
        graphs: As :class:`NodeData` holds them.
        fanout: In-neighbours to draw at every step away from the seed nodes; -1 takes all.
        batch_size: Seed nodes of a batch; the last one of an epoch may have fewer.
        split: The nodes to go through.
        seed: Seed of order and neighbours.
        shuffle: Whether the nodes come in a new order every epoch; otherwise it is their own.
        device: Where the batches go; the graphs stay where they are.

    Raises:
        InputError: No graph has a node of the split, or a size is below 1.

    Example:
        >>> ring = Data(x=torch.ones(6, 3), edge_index=torch.stack([torch.arange(6), torch.arange(6).roll(1)]))
        >>> ring.y, ring.train_mask = torch.zeros(6).long(), torch.arange(6) < 4
        >>> [batch.labelled.tolist() for batch in SampledNodes([ring], fanout=(1,), batch_size=4).epoch(1)][0]
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        graphs: Sequence[Data],
        *,
        fanout: Sequence[int],
        batch_size: int,
        split: Split = "train",
        seed: int = 0,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1")
        self.batch_size, self.seed, self.shuffle, self.device = batch_size, seed, shuffle, torch.device(device)
        self._graph = merge(_with_split(graphs, split))
        self._seeds = self._graph.labelled
        self.sampler = UniformSampler(self._graph.edge_index, self._graph.x.shape[0], fanout, seed=seed)

    def __len__(self) -> int:
        """Count the steps of an epoch."""
        return -(-len(self._seeds) // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[NodeBatch]:
        """Yield the batches of epoch ``number`` (counted from 1), from step ``start`` on, always the same ones."""
        order = self._seeds[_order(len(self._seeds), self.shuffle, self.seed, number)]
        steps = torch.split(order, self.batch_size)
        for step, seeds in enumerate(steps[start:], start):
            generator = np.random.default_rng([self.seed, _NEIGHBOURS, number, step])
            nodes, edge_index, complete = self.sampler.sample(seeds, generator)
            labelled = torch.arange(len(seeds))
            x, target = take_rows(self._graph.x, nodes), self._graph.target[nodes]
            yield _to(NodeBatch(x, edge_index, target, labelled, complete, nodes), self.device)


def evaluation_batches(
    graphs: Sequence[Data],
    split: Split,
    *,
    layers: int | None = None,
    batch_size: int = 1024,
    device: torch.device | str = "cpu",
) -> WholeGraphs | SampledNodes:
    """Return a loader that goes through every node of a split once, in order, with all of its neighbours.

    Args:
        graphs: As :class:`NodeData` holds them.
        split: The nodes to evaluate on.
        layers: How many layers away from them the neighbourhoods reach, for graphs too large to be taken whole; by
            default they are taken whole, one after the other.
        batch_size: Nodes of a batch, with ``layers``.
        device: Where the batches are.

    Raises:
        InputError: No graph has a node of the split.
    """
    if layers is None:
        return WholeGraphs(graphs, split=split, shuffle=False, device=device)
    return SampledNodes(graphs, fanout=(-1,) * layers, batch_size=batch_size, split=split, shuffle=False, device=device)


def _with_split(graphs: Sequence[Data], split: Split) -> list[NodeBatch]:
    batches = [as_batch(graph, f"{split}_mask") for graph in graphs]
    used = [batch for batch in batches if len(batch.labelled)]
    if not used:
        raise InputError(f"there is no {split} node in any of {len(batches)} graphs; mark some in {split}_mask")
    return used


def _order(count: int, shuffle: bool, seed: int, number: int) -> Tensor:
    return torch.randperm(count, generator=random_stream(seed, _ORDER, number)) if shuffle else torch.arange(count)


def _to(batch: NodeBatch, device: torch.device) -> NodeBatch:
    """Return a batch on a device; nothing is copied where it is there already."""
    moved: dict[str, Any] = {
        name: value.to(device, non_blocking=True)
        for name, value in batch._asdict().items()
        if isinstance(value, Tensor)
    }
    return batch._replace(**moved)
