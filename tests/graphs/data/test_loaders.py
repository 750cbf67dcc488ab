"""Loaders yield the same batches for the same epoch and step, whole or sampled, dense or sparse."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from stillroom.errors import InputError
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.loaders import SampledNodes, WholeGraphs, as_batch, evaluation_batches, merge
from stillroom.graphs.options import SBMOptions
from stillroom.graphs.sbm import stochastic_block_model


def graphs(count: int, *, sparse: bool = False) -> list[Data]:
    """Rings of different sizes; the first feature says the graph, the last ring is for validation."""
    made = []
    for number in range(count):
        nodes = 4 + number
        x = torch.zeros(nodes, 7)
        x[:, 0], x[:, 1] = number + 1, torch.arange(nodes) % 2
        ring = torch.arange(nodes)
        training = torch.full((nodes,), number < count - 1)
        made.append(
            Data(
                x=x.to_sparse_csr() if sparse else x,
                edge_index=torch.stack([ring.roll(1), ring]),
                y=ring % 2,
                train_mask=training,
                val_mask=~training,
            )
        )
    return made


def same(one: NodeBatch, other: NodeBatch) -> bool:
    def equal(a: object, b: object) -> bool:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return torch.equal(a.to_dense(), b.to_dense())
        return a is b

    return all(equal(a, b) for a, b in zip(one, other, strict=True))


SBM = stochastic_block_model(SBMOptions(nodes=600, per_class=20, val=100, test=150, degree=6.0)).graphs


@pytest.mark.parametrize(
    "loader",
    [
        WholeGraphs(graphs(6), graphs_per_batch=2, seed=1),
        WholeGraphs(graphs(2)),
        SampledNodes(SBM, fanout=(3, 2), batch_size=32, seed=1),
    ],
    ids=["merged", "single", "sampled"],
)
def test_an_epoch_entered_late_yields_what_is_left_of_it(loader: WholeGraphs | SampledNodes) -> None:
    whole = list(loader.epoch(2))
    assert len(whole) == len(loader)
    for start in range(len(loader) + 1):
        late = list(loader.epoch(2, start))
        assert len(late) == len(loader) - start
        assert all(same(one, other) for one, other in zip(late, whole[start:], strict=True))


def test_epochs_differ_in_order_and_seeds_in_all() -> None:
    def order(loader: WholeGraphs, number: int) -> list[float]:
        return [float(batch.x[0, 0]) for batch in loader.epoch(number)]

    first, other = WholeGraphs(graphs(9), seed=0), WholeGraphs(graphs(9), seed=1)
    orders = [order(first, 1), order(first, 2), order(other, 1)]
    assert all(sorted(one) == list(range(1, 9)) for one in orders)  # the ninth has no training node
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    sampled, again = SampledNodes(SBM, fanout=(2,), batch_size=100), SampledNodes(SBM, fanout=(2,), batch_size=100)
    one, two = (next(loader.epoch(1)) for loader in (sampled, again))
    assert same(one, two)
    assert not torch.equal(one.nodes, next(sampled.epoch(2)).nodes)


@pytest.mark.parametrize("sparse", [False, True])
def test_merged_graphs_are_pygs_batch(sparse: bool) -> None:
    parts = graphs(4, sparse=sparse)
    merged = merge([as_batch(part) for part in parts])
    expected = Batch.from_data_list(graphs(4))
    assert (merged.x.layout == torch.sparse_csr) == sparse
    assert torch.equal(merged.x.to_dense(), expected.x)
    assert torch.equal(merged.edge_index, expected.edge_index)
    assert torch.equal(merged.target, expected.y)
    assert torch.equal(merged.labelled, expected.train_mask.nonzero().flatten())
    assert same(as_batch(expected), as_batch(Data(**expected.to_dict())))  # no batch of a neighbour loader


def test_one_batch_that_is_always_the_same_is_made_once() -> None:
    for loader in (WholeGraphs(graphs(2)), WholeGraphs(graphs(4), graphs_per_batch=8)):
        batches = list(chain(loader.epoch(1), loader.epoch(2)))
        assert len(batches) == 2
        assert batches[0] is batches[1]
        assert batches[0].complete is None


@pytest.mark.parametrize("sparse", [False, True])
def test_sampled_batches_go_through_the_training_nodes_once(sparse: bool) -> None:
    graph = SBM[0].clone()
    if sparse:
        graph.x = (graph.x * (graph.x > 1)).to_sparse_csr()
    x = graph.x.to_dense()
    loader = SampledNodes([graph], fanout=(3, 2), batch_size=32)
    seen: list[int] = []
    for batch in loader.epoch(1):
        seeds = len(batch.labelled)
        assert batch.labelled.tolist() == list(range(seeds))
        assert torch.equal(batch.x.to_dense(), x[batch.nodes])
        assert torch.equal(batch.target, graph.y[batch.nodes])
        full = torch.bincount(graph.edge_index[1], minlength=600)[batch.nodes]
        inside = torch.bincount(batch.edge_index[1], minlength=len(batch.nodes))
        assert torch.equal(batch.complete, full == inside)
        assert bool((inside[:seeds] <= 4).all())  # three neighbours and the self loop
        seen += batch.nodes[:seeds].tolist()
    assert sorted(seen) == graph.train_mask.nonzero().flatten().tolist()


def test_several_graphs_are_sampled_as_one() -> None:
    parts = graphs(4, sparse=True)
    batches = list(SampledNodes(parts, fanout=(-1, -1), batch_size=4).epoch(1))
    assert sum(len(batch.labelled) for batch in batches) == 4 + 5 + 6
    for batch in batches:
        source, destination = batch.edge_index
        number = batch.x.to_dense()[:, 0]
        assert torch.equal(number[source], number[destination])
        assert int(batch.nodes.max()) < 15


def test_evaluation_reaches_every_node_of_the_split_in_order_with_all_its_neighbours() -> None:
    (whole,) = evaluation_batches(SBM, "test").epoch(1)
    assert torch.equal(whole.labelled, SBM[0].test_mask.nonzero().flatten())
    assert whole.complete is None
    parts = list(evaluation_batches(SBM, "test", layers=2, batch_size=40).epoch(1))
    assert [len(part.labelled) for part in parts] == [40, 40, 40, 30]
    assert (
        torch.cat([part.nodes[part.labelled] for part in parts]).tolist()
        == SBM[0].test_mask.nonzero().flatten().tolist()
    )
    assert all(bool(part.complete[part.labelled].all()) for part in parts)
    assert [float(batch.x[0, 0]) for batch in evaluation_batches(graphs(5), "train").epoch(1)] == [1, 2, 3, 4]
    assert [float(batch.x[0, 0]) for batch in evaluation_batches(graphs(5), "val").epoch(1)] == [5]


def test_two_layers_see_the_same_in_parts_as_in_the_whole() -> None:
    from torch_geometric.nn import SAGEConv

    torch.manual_seed(0)
    first, second = SAGEConv(64, 8), SAGEConv(8, 5)
    (whole,) = evaluation_batches(SBM, "test").epoch(1)
    expected = second(first(whole.x, whole.edge_index).relu(), whole.edge_index)[whole.labelled]
    found = torch.cat(
        [
            second(first(part.x, part.edge_index).relu(), part.edge_index)[part.labelled]
            for part in evaluation_batches(SBM, "test", layers=2, batch_size=64).epoch(1)
        ]
    )
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(InputError, match="there is no test node in any of 1 graphs"):
        WholeGraphs([Data(x=torch.ones(2, 1), y=torch.zeros(2).long(), test_mask=torch.zeros(2).bool())], split="test")
    with pytest.raises(InputError, match="the graph has no test_mask"):
        WholeGraphs(graphs(2), split="test")
    with pytest.raises(InputError, match="graphs_per_batch is 0"):
        WholeGraphs(graphs(2), graphs_per_batch=0)
    with pytest.raises(InputError, match="batch_size is 0"):
        SampledNodes(SBM, fanout=(2,), batch_size=0)
    with pytest.raises(InputError, match=r"fanout is \(0,\)"):
        SampledNodes(SBM, fanout=(0,), batch_size=4)
