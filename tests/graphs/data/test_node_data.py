"""Graphs are checked and brought into one form once; what is wrong is said in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures
from torch_geometric.utils import homophily

from stillroom.errors import InputError
from stillroom.graphs._edges import canonical_edges
from stillroom.graphs._features import stack_rows, take_rows
from stillroom.graphs.node_data import node_data

EDGES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=25)


def toy(**changes: Any) -> Data:
    """A path of six nodes, two of each split, of two classes."""
    parts: dict[str, Any] = {
        "x": torch.arange(12.0).reshape(6, 2) - 3,
        "edge_index": torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]]),
        "y": torch.tensor([0, 1, 0, 1, 0, 1]),
        **{f"{split}_mask": torch.arange(6) // 2 == place for place, split in enumerate(("train", "val", "test"))},
    }
    return Data(**{name: value for name, value in {**parts, **changes}.items() if value is not None})


def edges_of(edge_index: Tensor) -> list[tuple[int, int]]:
    return [(source, destination) for source, destination in edge_index.T.tolist()]


@settings(deadline=None)
@given(edges=EDGES, undirected=st.booleans(), self_loops=st.sampled_from(["add", "keep", "remove"]))
def test_edges_are_a_sorted_set_with_what_was_asked_for(
    edges: list[tuple[int, int]], undirected: bool, self_loops: Any
) -> None:
    given_edges = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
    found, repairs = canonical_edges(given_edges, 6, undirected=undirected, self_loops=self_loops)
    once = set(edges)
    both = once | {(d, s) for s, d in once} if undirected else once
    loops = {(node, node) for node in range(6)}
    wanted = {"add": both | loops, "keep": both, "remove": both - loops}[self_loops]
    assert edges_of(found) == sorted(wanted, key=lambda edge: edge[::-1])
    assert repairs == (
        len(edges) - len(once),
        len(both) - len(once),
        len(both & loops) if self_loops == "remove" else 0,
    )
    again, repairs = canonical_edges(found, 6, undirected=undirected, self_loops=self_loops)
    assert torch.equal(again, found)
    assert repairs == (0, 0, 0)


def test_what_was_repaired_is_noted_and_the_given_graph_is_left_alone() -> None:
    graph = toy(edge_index=torch.tensor([[3, 0, 0, 2], [2, 1, 1, 2]], dtype=torch.int32), x=torch.ones(6, 2).int())
    before = {name: graph[name].clone() for name in graph.keys()}  # noqa: SIM118 - Data iterates over pairs
    data = node_data("toy", graph)
    assert data.notes == ("1 duplicate edge merged", "2 reverse edges added", "2 isolated nodes")
    assert edges_of(data.graphs[0].edge_index) == [
        *[(0, 0), (1, 0), (0, 1), (1, 1), (2, 2), (3, 2), (2, 3), (3, 3), (4, 4), (5, 5)]
    ]
    assert (data.graphs[0].x.dtype, data.graphs[0].edge_index.dtype) == (torch.float32, torch.int64)
    assert all(torch.equal(graph[name], before[name]) for name in before)
    removed = node_data("toy", graph, self_loops="remove", undirected=False)
    assert removed.notes == ("1 duplicate edge merged", "1 self loop removed", "2 isolated nodes")


def test_the_description_counts_what_a_reader_needs() -> None:
    about = node_data("toy", toy(y=torch.tensor([0, 0, 0, 1, 1, 1]))).describe()
    assert about["notes"] == ["5 reverse edges added", "classes without a training node: 1"]
    assert about["homophily"] == pytest.approx(0.8)
    counts = ("graphs", "nodes", "edges", "self_loops", "isolated_nodes", "features", "classes")
    assert [about[name] for name in counts] == [1, 6, 10, 6, 0, 2, 2]
    assert [about[f"{split}_nodes"] for split in ("train", "val", "test")] == [2, 2, 2]


@settings(deadline=None)
@given(edges=EDGES)
def test_homophily_agrees_with_pyg(edges: list[tuple[int, int]]) -> None:
    data = node_data(
        "toy", toy(edge_index=torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T), self_loops="remove"
    )
    graph = data.graphs[0]
    expected = homophily(graph.edge_index, graph.y, method="edge") if graph.num_edges else None
    assert data.describe()["homophily"] == (expected if expected is None else pytest.approx(expected))


def test_homophily_skips_unknown_labels() -> None:
    graph = toy(y=torch.tensor([0, 1, 1, 0, 0, -1]), test_mask=torch.tensor([False] * 4 + [True, False]))
    data = node_data("toy", graph)
    assert "1 node without a known label" in data.notes
    assert data.describe()["homophily"] == pytest.approx(0.5)


def test_several_labels_a_node_become_floats() -> None:
    y = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    data = node_data("toy", toy(y=y))
    assert (data.multilabel, data.classes, data.graphs[0].y.dtype) == (True, 3, torch.float32)
    assert data.describe()["homophily"] is None
    assert "1 node with none of the labels" in data.notes


def test_one_label_a_node_in_zeros_and_ones_is_noted() -> None:
    data = node_data("toy", toy(y=torch.eye(2)[torch.tensor([0, 1, 0, 1, 0, 1])]))
    assert any("exactly one" in note for note in data.notes)


words = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0]])


@pytest.mark.parametrize("x", [words, words.to_sparse_csr(), words.to_sparse_coo()], ids=["dense", "csr", "coo"])
def test_bags_of_words_are_normalised_row_by_row_and_stay_sparse(x: Tensor) -> None:
    data = node_data("toy", toy(x=x))
    assert data.sparse == (x.layout != torch.strided)
    found = data.graphs[0].x.to_dense()
    assert torch.equal(found, NormalizeFeatures()(Data(x=words.clone())).x)
    assert found[2].tolist() == [0, 0, 0, 0]
    assert data.notes[-2:] == ("1 node without features (all zero)", "feature rows divided by their sums")
    assert torch.equal(node_data("toy", toy(x=x), normalise="none").graphs[0].x.to_dense(), words)
    assert torch.equal(x.to_dense(), words)


def test_other_features_are_normalised_only_when_asked_to() -> None:
    positive = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) + 1
    assert torch.equal(node_data("toy", toy(x=positive)).graphs[0].x, positive)
    assert torch.allclose(node_data("toy", toy(x=positive), normalise="rows").graphs[0].x.sum(1), torch.ones(6))
    with pytest.raises(InputError, match="toy has negative features"):
        node_data("toy", toy(), normalise="rows")


@settings(deadline=None)
@given(index=st.lists(st.integers(0, 5), max_size=12))
def test_sparse_rows_are_taken_and_stacked_as_dense_ones_are(index: list[int]) -> None:
    place = torch.tensor(index, dtype=torch.int64)
    sparse = words.to_sparse_csr()
    assert torch.equal(take_rows(sparse, place).to_dense(), words[place])
    stacked = stack_rows([take_rows(sparse, place), sparse, sparse])
    assert torch.equal(stacked.to_dense(), torch.cat([words[place], words, words]))


mask = torch.tensor([True, True, False, False, False, False])
damaged = words.to_sparse_csr()
damaged.values()[3] = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "toy has no features: there is no x"),
        ({"x": torch.ones(6)}, r"x has shape \(6,\)"),
        ({"x": torch.ones(5, 2)}, "toy has 5 rows of features and 6 labels"),
        (
            {"x": torch.tensor([[1.0, 2]] * 4 + [[1, float("inf")]] + [[1, 2]])},
            "feature 1 of node 4 is NaN or infinite",
        ),
        ({"x": torch.full((6, 2), 1e300, dtype=torch.float64)}, "feature 0 of node 0 is NaN or infinite"),
        ({"x": damaged}, "feature 1 of node 3 is NaN"),
        ({"edge_index": None}, "toy has no edges"),
        ({"edge_index": torch.zeros(3, 2, dtype=torch.int64)}, r"edge_index has shape \(3, 2\)"),
        ({"edge_index": torch.zeros(2, 2)}, r"edge_index is torch\.float32"),
        (
            {"edge_index": torch.tensor([[0, 1], [1, 6]])},
            r"edge 1 runs from node 1 to node 6, outside the 6 nodes \(0\.\.5",
        ),
        ({"edge_index": torch.tensor([[0, -1], [1, 2]])}, "edge 1 runs from node -1 to node 2"),
        ({"y": None}, "toy has no labels"),
        ({"y": torch.ones(6)}, r"y is torch\.float32"),
        ({"y": torch.tensor([0, 1, 0, -2, 0, 1])}, "node 3 has label -2"),
        ({"y": torch.zeros(6, dtype=torch.int64)}, "toy has 1 class; a classifier needs at least two"),
        ({"y": torch.full((6, 2), 0.5)}, r"node 0 has 0\.5 for label 0"),
        ({"y": torch.tensor([0, 1, 0, -1, 0, 1])}, r"1 nodes of val_mask have no known label"),
        ({"val_mask": mask}, r"2 nodes are in train and in val \(the first is 0\)"),
        ({"val_mask": mask.float()}, r"val_mask is torch\.float32 \(6,\); it must be torch\.bool \(6,\)"),
        ({"val_mask": mask[:5]}, r"val_mask is torch\.bool \(5,\)"),
        ({"train_mask": torch.zeros(6, dtype=torch.bool)}, "toy has no train node; mark some in train_mask, or set"),
        ({"test_mask": None}, "toy has no test node"),
    ],
)
def test_a_mistake_is_named_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        node_data("toy", toy(**changes))
    assert "\n" not in str(caught.value)


def test_a_sparse_matrix_that_points_outside_itself_is_refused() -> None:
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        wild = torch.sparse_csr_tensor([0, 1, 1, 1, 1, 1, 1], [99], [1.0], (6, 3))
    with pytest.raises(InputError, match="the sparse features are damaged"):
        node_data("toy", toy(x=wild))


def test_several_graphs_must_be_alike_and_the_faulty_one_is_named() -> None:
    with pytest.raises(InputError, match="toy, graph 1 has no labels"):
        node_data("toy", [toy(), toy(y=None)])
    with pytest.raises(InputError, match="differ in their features"):
        node_data("toy", [toy(), toy(x=torch.ones(6, 3))])
    with pytest.raises(InputError, match="differ in the form of their labels"):
        node_data("toy", [toy(), toy(y=torch.ones(6, 2))])
    with pytest.raises(InputError, match="toy has no graph"):
        node_data("toy", [])
    with pytest.raises(InputError, match="said to have 1 classes, but its labels have 2"):
        node_data("toy", toy(), classes=1)
