"""Uniform neighbour sampling in NumPy, for PyG's loaders and ours, where none of PyG's compiled samplers is installed.

W. Hamilton, R. Ying, J. Leskovec, "Inductive Representation Learning on Large Graphs", NeurIPS 2017.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillroom.errors import InputError
from stillroom.graphs._checks import checked_edges
from stillroom.graphs._torch_geometric import BaseSampler, NodeSamplerInput, SamplerOutput

__all__ = ["NodeSample", "UniformSampler"]

Ints = NDArray[np.int64]


class NodeSample(NamedTuple):
    """The neighbourhood of some nodes.

    Shapes:
        nodes: [n], int64, positions in the whole graph, the seed nodes first.
        edge_index: [2, e], int64, positions in ``nodes``, sorted by destination.
        complete: [n], bool, the nodes all of whose in-edges are in the sample.
    """

    nodes: Tensor
    edge_index: Tensor
    complete: Tensor


class UniformSampler(BaseSampler):  # type: ignore[misc]  # PyG brings no types
    """Draw in-neighbours of the seed nodes, of these neighbours, and so on, uniformly and each at most once.

    A node's neighbours are drawn where it is met first, and only then. A self loop is no neighbour: it takes no place
    of another, and is in the sample with every node that has one. PyG's loaders take it as ``node_sampler``, with dense
    features; :class:`~stillroom.graphs.loaders.SampledNodes` takes sparse ones as well.

    Args:
        edge_index: Sources and destinations; sorted by destination, as in :class:`NodeData`, they need no sort.
        num_nodes: Nodes of the graph.
        fanout: Neighbours to draw at every step away from the seed nodes; -1 takes all.
        seed: With PyG's loaders, the seed of the draw. The same seed nodes in the same order then have the same
            neighbours, whichever worker draws them.

    Shapes:
        edge_index: [2, E], int64.

    Raises:
        InputError: An edge leaves the graph, or a fanout is neither -1 nor at least 1.

    Example:
        >>> star = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]])
        >>> sample = UniformSampler(star, 5, fanout=(2,)).sample(torch.tensor([0]), np.random.default_rng(0))
        >>> len(sample.nodes), sample.edge_index.tolist(), sample.complete.tolist()
        (3, [[1, 2], [0, 0]], [False, True, True])
    """

    def __init__(self, edge_index: Tensor, num_nodes: int, fanout: Sequence[int], *, seed: int = 0) -> None:
        self.fanout = tuple(fanout)
        if not self.fanout or any(size != -1 and size < 1 for size in self.fanout):
            raise InputError(
                f"fanout is {self.fanout}; it needs a number of neighbours (or -1 for all) for every layer"
            )
        self.seed = seed
        source, destination = checked_edges(edge_index, num_nodes, "the graph to sample from").numpy()
        if not bool((destination[1:] >= destination[:-1]).all()):
            order = np.argsort(destination, kind="stable")
            source, destination = source[order], destination[order]
        loop = source == destination
        self._loop = np.zeros(num_nodes, dtype=np.bool_)
        self._loop[source[loop]] = True
        # Half the width is half the memory traffic, which is what sampling mostly costs.
        self._source = source[~loop].astype(np.int32 if num_nodes < 2**31 else np.int64)
        self._degree = np.bincount(destination[~loop], minlength=num_nodes)
        self._start = np.cumsum(self._degree) - self._degree
        self._place = np.full(num_nodes, -1, dtype=np.int64)  # of every node in the sample being drawn

    def sample(self, seeds: Tensor, generator: np.random.Generator) -> NodeSample:
        """Draw the neighbourhood of the seed nodes.

        Args:
            seeds: Different nodes.
            generator: Source of the draw.

        Raises:
            InputError: A seed node is not in the graph, or listed twice.
        """
        first = seeds.cpu().numpy().astype(np.int64)
        if len(first) and not (first.min() >= 0 and first.max() < len(self._degree)):
            raise InputError(f"a seed node lies outside the {len(self._degree)} nodes of the graph")
        try:
            return self._sample(first, generator)
        except BaseException:
            self._place.fill(-1)  # an interrupted draw must not be seen by the next
            raise

    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: object) -> SamplerOutput:
        """Draw the neighbourhood of the nodes PyG's ``NodeLoader`` asks for; edge attributes are not carried along."""
        drawn = int.from_bytes(hashlib.blake2b(index.node.numpy().tobytes(), digest_size=8).digest())
        sample = self.sample(index.node, np.random.default_rng([self.seed, drawn]))
        row, column = sample.edge_index
        return SamplerOutput(node=sample.nodes, row=row, col=column, edge=None, metadata=(index.input_id, index.time))

    def sample_from_edges(self, index: object, neg_sampling: object = None) -> SamplerOutput:
        """Refuse: node classification has no seed edges."""
        raise InputError("UniformSampler samples around nodes, not edges; use PyG's LinkNeighborLoader for these")

    def _sample(self, seeds: Ints, generator: np.random.Generator) -> NodeSample:
        place = self._place
        place[seeds] = np.arange(len(seeds))
        if not np.array_equal(place[seeds], np.arange(len(seeds))):
            raise InputError("a seed node is listed twice; every one may be there once")
        layers, sources, destinations = [seeds], [], []
        count = len(seeds)
        for size in self.fanout:
            frontier = layers[-1]
            found, of = self._in_neighbours(frontier, size, generator)
            unknown = found[place[found] < 0]
            # Of a node found several times the last finding stays, and enters it.
            turn = np.arange(len(unknown))
            place[unknown] = turn
            fresh = unknown[place[unknown] == turn]
            place[fresh] = np.arange(count, count + len(fresh))
            sources.append(place[found])
            destinations.append(of + (count - len(frontier)))
            layers.append(fresh)
            count += len(fresh)
        nodes = np.concatenate(layers)
        place[nodes] = -1
        loops = np.flatnonzero(self._loop[nodes])
        source, destination = np.concatenate([*sources, loops]), np.concatenate([*destinations, loops])
        order = np.argsort(destination, kind="stable")
        edges = np.stack([source[order], destination[order]])
        complete = np.bincount(destination, minlength=count) == self._degree[nodes] + self._loop[nodes]
        return NodeSample(torch.from_numpy(nodes), torch.from_numpy(edges), torch.from_numpy(complete))

    def _in_neighbours(self, nodes: Ints, size: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """Return drawn in-neighbours, and for each the position in ``nodes`` of the node it is a neighbour of."""
        degree = self._degree[nodes]
        count = degree if size == -1 else np.minimum(degree, size)
        first = np.cumsum(count) - count
        of = np.repeat(np.arange(len(nodes)), count)
        among = np.arange(len(of)) - first[of]  # place of each among the neighbours of its node
        if len(some := np.flatnonzero(degree > count)):
            slots = first[some][:, None] + np.arange(size)
            among[slots] = _subsets(degree[some], size, generator).T
        return self._source[self._start[nodes][of] + among].astype(np.int64), of


def _subsets(sizes: Ints, count: int, generator: np.random.Generator) -> Ints:
    """Draw ``count`` different numbers below each of the sizes, every subset with the same probability.

    R. Floyd's algorithm (J. Bentley, "Programming Pearls: A sample of brilliance", Communications of the ACM 30, 1987),
    for all sizes at once: the work does not grow with the sizes.

    Shapes:
        sizes: [n], all above ``count``. Returns [count, n].
    """
    chosen = np.empty((count, len(sizes)), dtype=np.int64)
    for turn in range(count):
        top = sizes - count + turn
        drawn = generator.integers(top, endpoint=True)
        chosen[turn] = np.where((chosen[:turn] == drawn).any(0), top, drawn)
    return chosen
