"""What a user can say about the graphs: which set, how it is split and prepared, and how a generated one looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from stillroom.errors import InputError, unknown_name

__all__ = ["GraphDataOptions", "Normalise", "SBMOptions", "SelfLoops", "Split"]

Split = Literal["train", "val", "test"]
SelfLoops = Literal["add", "keep", "remove"]
Normalise = Literal["auto", "rows", "none"]


@dataclass(frozen=True, kw_only=True)
class GraphDataOptions:
    """Options of one data set for node classification, as ``load_graphs`` takes them.

    Args:
        name: sbm (generated, with options of its own), cora, citeseer, the path of an .npz file or of a folder with
            edges.csv and nodes.csv, pyg:NAME for a data set of PyTorch Geometric, or ogb:NAME for one of the Open Graph
            Benchmark.
        root: Folder that pyg: and ogb: keep their data sets in; each has a folder of its own name there.
        split: public takes the split the data set brings; random draws one from its known labels, with the seed.
        per_class: Training nodes of every class in a random split; where nodes have several labels, so many times the
            number of labels.
        val: Validation nodes of a random split.
        test: Test nodes of a random split.
        seed: Seed of the random split, and of the generated graph unless that has its own.
        undirected: Add the reverse of every edge.
        self_loops: add gives every node an edge to itself, so that isolated nodes have one; remove drops all, keep
            leaves them as they are.
        normalise: rows divides every row of features by its sum, as is usual for bags of words; auto does so where no
            feature is negative and most are zero.
        dense: Store sparse features as dense ones.
        allow_pickle: Let pyg: and ogb: read their files, which are pickles and can run code when opened.

    Raises:
        InputError: A value is outside its range.

    Example:
        >>> GraphDataOptions(name="cora").per_class
        20
    """

    name: str = "sbm"
    root: Path | None = None
    split: Literal["public", "random"] = "public"
    per_class: int = 20
    val: int = 500
    test: int = 1000
    seed: int = 0
    undirected: bool = True
    self_loops: SelfLoops = "add"
    normalise: Normalise = "auto"
    dense: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Refuse values no data set could honour."""
        _at_least(1, "data", per_class=self.per_class, val=self.val, test=self.test)
        _at_least(0, "data", seed=self.seed)
        _one_of("data.split", self.split, ("public", "random"))
        _one_of("data.self_loops", self.self_loops, get_args(SelfLoops))
        _one_of("data.normalise", self.normalise, get_args(Normalise))


@dataclass(frozen=True, kw_only=True)
class SBMOptions:
    """Options of the generated graph: a stochastic block model with Gaussian features.

    Args:
        nodes: Nodes of the graph.
        classes: Classes, of equal size.
        degree: Mean number of neighbours of a node.
        homophily: Share of the edges that stay within a class, before edge noise.
        features: Features of a node, at least as many as classes.
        separation: Distance of any two class means, in standard deviations of the noise around them.
        edge_noise: Share of the edges that are replaced by ones between any two nodes.
        label_noise: Share of the training labels that are replaced by another class.
        degree_spread: Standard deviation of the logarithm of the nodes' expected degrees; 0 makes them equal, 1 gives
            hubs with some ten times the mean.
        per_class: Training nodes of every class.
        val: Validation nodes.
        test: Test nodes.
        shift: How far the test nodes' features are moved along one random direction, in standard deviations of the
            noise; above 0 the test nodes are a graph of their own.
        test_homophily: Homophily of the test nodes, which are then a graph of their own.
        seed: Seed of everything drawn; without one the data set's.

    Raises:
        InputError: A value is outside its range, or the nodes do not suffice for the split.

    Example:
        >>> SBMOptions(nodes=5000).degree
        8.0
    """

    nodes: int = 3000
    classes: int = 5
    degree: float = 8.0
    homophily: float = 0.8
    features: int = 64
    separation: float = 1.0
    edge_noise: float = 0.0
    label_noise: float = 0.0
    degree_spread: float = 0.0
    per_class: int = 20
    val: int = 500
    test: int = 1000
    shift: float = 0.0
    test_homophily: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values no graph could have."""
        _at_least(2, "sbm", classes=self.classes)
        _at_least(1, "sbm", nodes=self.nodes, per_class=self.per_class, val=self.val, test=self.test)
        _at_least(0, "sbm", separation=self.separation, degree_spread=self.degree_spread, shift=self.shift)
        _at_least(0, "sbm", seed=0 if self.seed is None else self.seed)
        if not (self.degree > 0 and math.isfinite(self.degree)):
            raise InputError(f"sbm.degree is {self.degree}; it must be above 0")
        homophily = self.homophily if self.test_homophily is None else self.test_homophily
        _share("sbm", homophily=self.homophily, test_homophily=homophily, edge_noise=self.edge_noise)
        _share("sbm", label_noise=self.label_noise)
        if self.features < self.classes:
            raise InputError(
                f"sbm.features is {self.features}; {self.classes} class means at equal distances need at least as many"
            )
        held = self.val if self.separate_test else self.val + self.test
        needed = self.per_class * self.classes + held
        if self.nodes < needed or self.nodes // self.classes < self.per_class:
            raise InputError(
                f"sbm.nodes is {self.nodes}; {self.per_class} training nodes in each of {self.classes} classes and "
                f"{held} others need at least {needed}; raise it, or lower sbm.per_class, sbm.val or sbm.test"
            )

    @property
    def separate_test(self) -> bool:
        """Whether the test nodes form a graph of their own."""
        return self.shift > 0 or self.test_homophily is not None


def _at_least(least: int, group: str, **values: float) -> None:
    for name, value in values.items():
        if not (value >= least and math.isfinite(value)):
            raise InputError(f"{group}.{name} is {value}; it must be at least {least}")


def _share(group: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise InputError(f"{group}.{name} is {value}; it must be between 0 and 1")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise unknown_name(name, value, choices)
