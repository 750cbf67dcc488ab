"""Graphs drawn from a stochastic block model: as large, homophilous, noisy and shifted as asked for.

P. Holland, K. Laskey, S. Leinhardt, "Stochastic blockmodels: First steps", Social Networks 5, 1983; with unequal
expected degrees B. Karrer, M. Newman, "Stochastic blockmodels and community structure in networks", Physical Review E
83, 2011.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from stillroom.data.split import random_stream
from stillroom.errors import InputError
from stillroom.graphs._edges import distinct
from stillroom.graphs._torch_geometric import Data
from stillroom.graphs.node_data import NodeData, Source, node_data
from stillroom.graphs.options import SBMOptions
from stillroom.graphs.splits import random_split

__all__ = ["SBMOptions", "draw_graphs", "stochastic_block_model"]

# Purposes of the random streams of one seed.
_GRAPH, _TEST_GRAPH, _MEANS, _SHIFT, _LABELS, _SPLIT = range(6)
_ROUNDS = 100  # of drawing edges again that exist already
_FULL = 0.5  # share of all possible pairs up to which drawing again is quick

Ints = NDArray[np.int64]
Draw = Callable[[int], tuple[Ints, Ints]]


def stochastic_block_model(options: SBMOptions) -> NodeData:
    """Draw a graph whose edges and features tell of the nodes' classes.

    Classes have equal sizes. Of ``nodes * degree / 2`` undirected edges the share ``edge_noise`` is drawn between any
    two nodes. Of the others exactly the share ``homophily`` connects nodes of one class, the rest nodes of two, each
    end drawn in proportion to its expected degree. No edge occurs twice. Features are the class mean plus standard
    normal noise; the means are ``separation`` apart, each from each. Where the test nodes are shifted or differ in
    homophily they form a second graph of the same classes, and the first stays as it is without.

    Time and memory grow with nodes and edges only.

    Args:
        options: What the graph is like.

    Raises:
        InputError: The edges asked for do not fit between the nodes.

    Example:
        >>> data = stochastic_block_model(SBMOptions(nodes=2000, degree=6.0))
        >>> data.describe()["edges"]
        12000
    """
    source = draw_graphs(options, options.seed or 0)
    return node_data("sbm", source.graphs, classes=source.classes, normalise="none", notes=source.notes)


def draw_graphs(options: SBMOptions, seed: int) -> Source:
    """Draw the graphs of :func:`stochastic_block_model` from a seed; they are not brought into form yet."""
    directions = _numpy(seed, _MEANS).standard_normal((options.features, options.classes))
    orthonormal = np.linalg.qr(directions)[0].T
    means = (orthonormal * (options.separation / np.sqrt(2))).astype(np.float32)
    graph = _graph(options, options.nodes, options.homophily, means, _numpy(seed, _GRAPH))
    graph.train_mask, graph.val_mask, test_mask = random_split(
        graph.y,
        per_class=options.per_class,
        val=options.val,
        test=0 if options.separate_test else options.test,
        generator=random_stream(seed, _SPLIT),
    )
    graphs, notes = [graph], []
    if options.separate_test:
        homophily = options.homophily if options.test_homophily is None else options.test_homophily
        other = _graph(options, options.test, homophily, means, _numpy(seed, _TEST_GRAPH))
        direction = _numpy(seed, _SHIFT).standard_normal(options.features).astype(np.float32)
        other.x += torch.from_numpy(direction * (options.shift / np.linalg.norm(direction)))
        other.test_mask = torch.ones(options.test, dtype=torch.bool)
        graphs.append(other)
        notes.append(f"the test nodes are a graph of their own: shift {options.shift:g}, homophily {homophily:g}")
    else:
        graph.test_mask = test_mask
    if replaced := _replace_labels(graph, options, _numpy(seed, _LABELS)):
        notes.append(f"{replaced} training labels replaced by another class")
    return Source(graphs, options.classes, tuple(notes))


def _numpy(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, purpose])


def _graph(
    options: SBMOptions, nodes: int, homophily: float, means: NDArray[np.float32], rng: np.random.Generator
) -> Data:
    # Edges are drawn between places; the places of a class lie side by side, its nodes anywhere.
    sizes = np.full(options.classes, nodes // options.classes)
    sizes[: nodes % options.classes] += 1
    node_at = rng.permutation(nodes)
    y = np.empty(nodes, dtype=np.int64)
    y[node_at] = np.repeat(np.arange(options.classes), sizes)
    first, second = _Blocks(sizes, options.degree_spread, rng).edges(options, homophily)
    first, second = node_at[first], node_at[second]
    edges = np.concatenate([first * nodes + second, second * nodes + first])
    edges.sort()
    x = rng.standard_normal((nodes, options.features), dtype=np.float32)
    for start in range(0, nodes, 65536):  # the means of all nodes at once would be as large as the features
        x[start : start + 65536] += means[y[start : start + 65536]]
    edge_index = torch.from_numpy(np.stack([edges % nodes, edges // nodes]))
    return Data(x=torch.from_numpy(x), edge_index=edge_index, y=torch.from_numpy(y))


class _Blocks:
    """Places in proportion to their expected degrees, those of a class side by side."""

    def __init__(self, sizes: Ints, spread: float, rng: np.random.Generator) -> None:
        self.sizes, self.rng, self.places = sizes, rng, int(sizes.sum())
        self.class_of = np.repeat(np.arange(len(sizes)), sizes)
        # A place is drawn by where a uniform number falls on the line of expected degrees; equal ones need no search.
        self.line = np.cumsum(rng.lognormal(0.0, spread, self.places)) if spread else None
        ends = np.cumsum(sizes)
        until = ends.astype(np.float64) if self.line is None else self.line[ends - 1]
        self.start, self.length = np.concatenate([[0.0], until[:-1]]), np.diff(until, prepend=0.0)
        self.total = float(until[-1])

    def edges(self, options: SBMOptions, homophily: float) -> tuple[Ints, Ints]:
        count = round(self.places * options.degree / 2)
        noise = round(count * options.edge_noise)
        within = round((count - noise) * homophily)
        between = count - noise - within
        pairs_within = int((self.sizes * (self.sizes - 1) // 2).sum())
        pairs = self.places * (self.places - 1) // 2
        for asked, there, where in (
            (within, pairs_within, "within classes"),
            (between, pairs - pairs_within, "between classes"),
            (count, pairs, "in all"),
        ):
            if asked > _FULL * there:
                raise InputError(
                    f"sbm.degree {options.degree:g} asks for {asked} edges {where}, and {self.places} nodes have only "
                    f"{there} pairs there; lower it, or raise sbm.nodes"
                )
        nothing = np.empty(0, dtype=np.int64)
        keys = np.concatenate(
            [self._distinct(self._within, within, nothing), self._distinct(self._between, between, nothing)]
        )
        keys.sort()
        keys = np.concatenate([keys, self._distinct(self._anywhere, noise, keys)])
        return keys // self.places, keys % self.places

    def _distinct(self, draw: Draw, count: int, taken: Ints) -> Ints:
        """Draw pairs until ``count`` different ones are there that are not among those taken."""
        keys = np.empty(0, dtype=np.int64)
        for _ in range(_ROUNDS):
            first, second = draw(count - len(keys))
            low, high = np.minimum(first, second), np.maximum(first, second)
            fresh = distinct((low * self.places + high)[low != high])
            fresh = fresh[~_member(fresh, taken)]
            keys = distinct(np.concatenate([keys, fresh]))
            if len(keys) == count:
                return keys
        raise InputError(
            f"found only {len(keys)} of {count} different edges between nodes of so unequal degrees; lower sbm.degree "
            "or sbm.degree_spread"
        )

    def _within(self, count: int) -> tuple[Ints, Ints]:
        first = self._at(self.rng.random(count) * self.total)
        own = self.class_of[first]
        return first, self._at(self.start[own] + self.rng.random(count) * self.length[own])

    def _between(self, count: int) -> tuple[Ints, Ints]:
        first = self._at(self.rng.random(count) * self.total)
        own = self.class_of[first]
        along = self.rng.random(count) * (self.total - self.length[own])
        return first, self._at(np.where(along < self.start[own], along, along + self.length[own]))

    def _anywhere(self, count: int) -> tuple[Ints, Ints]:
        return self.rng.integers(self.places, size=count), self.rng.integers(self.places, size=count)

    def _at(self, along: NDArray[np.float64]) -> Ints:
        place = along.astype(np.int64) if self.line is None else np.searchsorted(self.line, along, side="right")
        return np.minimum(place, self.places - 1)  # rounding may reach the end of the line


def _member(values: Ints, among: Ints) -> NDArray[np.bool_]:
    """Say of every value whether it is among ascending others."""
    if len(among) == 0:
        return np.zeros(len(values), dtype=np.bool_)
    there: NDArray[np.bool_] = among[np.minimum(np.searchsorted(among, values), len(among) - 1)] == values
    return there


def _replace_labels(graph: Data, options: SBMOptions, rng: np.random.Generator) -> int:
    train = graph.train_mask.nonzero().flatten().numpy()
    chosen = rng.choice(train, round(options.label_noise * len(train)), replace=False)
    other = torch.from_numpy(rng.integers(1, options.classes, size=len(chosen)))
    graph.y[chosen] = (graph.y[chosen] + other) % options.classes
    return len(chosen)
