"""The uniform sampler draws true edges, no more than asked for, every neighbour as often as another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader
from torch_geometric.utils import k_hop_subgraph

from stillroom.errors import InputError
from stillroom.graphs.loaders import as_batch
from stillroom.graphs.sampler import UniformSampler

NODES = 12
EDGE_SETS = st.sets(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)), max_size=70)
FANOUTS = st.lists(st.sampled_from([-1, 1, 2, 4]), min_size=1, max_size=3)
SEEDS = st.lists(st.integers(0, NODES - 1), min_size=1, max_size=6, unique=True)


def tensor(edges: set[tuple[int, int]]) -> Tensor:
    return torch.tensor(sorted(edges), dtype=torch.int64).reshape(-1, 2).T  # sorted by source: the sampler has to sort


def graph(nodes: int = 200, degree: int = 8) -> Data:
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(nodes, (2, nodes * degree), generator=generator).unique(dim=1)
    edges = edges[:, torch.argsort(edges[1], stable=True)]
    y = torch.randint(3, (nodes,), generator=generator)
    return Data(x=torch.arange(float(nodes))[:, None], edge_index=edges, y=y, train_mask=torch.arange(nodes) < 50)


@settings(deadline=None, max_examples=200)
@given(edges=EDGE_SETS, fanout=FANOUTS, seeds=SEEDS, seed=st.integers(0, 9))
def test_a_sample_is_a_part_of_the_graph_around_its_seeds(
    edges: set[tuple[int, int]], fanout: list[int], seeds: list[int], seed: int
) -> None:
    sampler = UniformSampler(tensor(edges), NODES, fanout)
    sample = sampler.sample(torch.tensor(seeds), np.random.default_rng(seed))
    nodes = sample.nodes.tolist()
    assert nodes[: len(seeds)] == seeds
    assert len(set(nodes)) == len(nodes)
    drawn = [(nodes[source], nodes[destination]) for source, destination in sample.edge_index.T.tolist()]
    assert set(drawn) <= edges
    assert len(set(drawn)) == len(drawn)
    destinations = sample.edge_index[1].tolist()
    assert destinations == sorted(destinations)
    assert {(node, node) for node in nodes} & edges == {edge for edge in drawn if edge[0] == edge[1]}

    distance = dict.fromkeys(seeds, 0)
    for step in range(len(fanout)):
        for source, destination in drawn:
            if distance.get(destination) == step:
                distance.setdefault(source, step + 1)
    assert set(distance) == set(nodes)
    for node, complete in zip(nodes, sample.complete.tolist(), strict=True):
        there = {edge for edge in edges if edge[1] == node}
        others = len(there - {(node, node)})
        size = fanout[distance[node]] if distance[node] < len(fanout) else 0
        assert sum(1 for s, d in drawn if d == node and s != node) == (others if size == -1 else min(others, size))
        assert complete == (there <= set(drawn))


@settings(deadline=None)
@given(edges=EDGE_SETS, seeds=SEEDS, hops=st.integers(1, 3))
def test_all_neighbours_are_the_k_hop_subgraph_of_pyg(edges: set[tuple[int, int]], seeds: list[int], hops: int) -> None:
    edge_index = tensor(edges)
    sample = UniformSampler(edge_index, NODES, (-1,) * hops).sample(torch.tensor(seeds), np.random.default_rng(0))
    nodes, *_ = k_hop_subgraph(seeds, hops, edge_index, num_nodes=NODES)
    assert sample.nodes.sort().values.tolist() == nodes.tolist()
    assert bool(sample.complete[: len(seeds)].all())


def test_every_set_of_neighbours_is_as_likely_as_another() -> None:
    star = torch.stack([torch.arange(1, 6), torch.zeros(5, dtype=torch.int64)])
    sampler, generator = UniformSampler(star, 6, (3,)), np.random.default_rng(0)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(4000):
        found = tuple(sorted(sampler.sample(torch.tensor([0]), generator).nodes[1:].tolist()))
        counts[found] = counts.get(found, 0) + 1
    assert len(counts) == 10  # 5 choose 3
    assert sum((count - 400) ** 2 / 400 for count in counts.values()) < 27.9  # chi-square, 9 degrees of freedom, 0.1 %


def test_self_loops_take_no_neighbours_place() -> None:
    edges = torch.tensor([[0, 1, 2, 1], [0, 0, 0, 1]])
    for seed in range(5):
        sample = UniformSampler(edges, 3, (1,)).sample(torch.tensor([0]), np.random.default_rng(seed))
        assert [0, 0] in sample.edge_index.T.tolist()
        assert len(sample.nodes) == 2
    alone = UniformSampler(edges, 3, (2, 2)).sample(torch.tensor([2]), np.random.default_rng(0))
    assert (alone.nodes.tolist(), alone.edge_index.tolist(), alone.complete.tolist()) == ([2], [[], []], [True])


@pytest.mark.parametrize("workers", [0, 2])
def test_pygs_node_loader_works_with_it_and_workers_change_nothing(workers: int) -> None:
    data = graph()
    sampler = UniformSampler(data.edge_index, 200, (3, 2), seed=5)
    loader = NodeLoader(
        data,
        node_sampler=sampler,
        input_nodes=data.train_mask,
        batch_size=20,
        num_workers=workers,
        filter_per_worker=True,
    )
    in_degrees = torch.bincount(data.edge_index[1], minlength=200)
    seen, alone = [], UniformSampler(data.edge_index, 200, (3, 2), seed=5)
    own = NodeLoader(data, node_sampler=alone, input_nodes=data.train_mask, batch_size=20)
    for found, expected in zip(loader, own, strict=True):
        assert torch.equal(found.n_id, expected.n_id)
        assert torch.equal(found.edge_index, expected.edge_index)
        batch = as_batch(found, in_degrees=in_degrees)
        assert torch.equal(batch.x[:, 0].long(), batch.nodes)
        assert torch.equal(batch.target, data.y[batch.nodes])
        assert batch.labelled.tolist() == list(range(found.batch_size))
        inside = torch.bincount(batch.edge_index[1], minlength=len(batch.nodes))
        assert torch.equal(batch.complete, inside == in_degrees[batch.nodes])
        seen += found.n_id[: found.batch_size].tolist()
        with pytest.raises(InputError, match="needs in_degrees"):
            as_batch(found)
    assert seen == list(range(50))


def test_the_seed_changes_what_pygs_loader_draws() -> None:
    data = graph()
    first, other = (
        next(
            iter(
                NodeLoader(data, UniformSampler(data.edge_index, 200, (3,), seed=seed), data.train_mask, batch_size=50)
            )
        )
        for seed in (0, 1)
    )
    assert first.n_id.tolist() != other.n_id.tolist()


def test_mistakes_are_refused_and_leave_the_sampler_as_it_was() -> None:
    data = graph()
    sampler = UniformSampler(data.edge_index, 200, (2,))
    fresh = UniformSampler(data.edge_index, 200, (2,)).sample(torch.arange(5), np.random.default_rng(0))
    with pytest.raises(InputError, match="listed twice"):
        sampler.sample(torch.tensor([3, 4, 3]), np.random.default_rng(0))
    with pytest.raises(InputError, match="outside the 200 nodes"):
        sampler.sample(torch.tensor([200]), np.random.default_rng(0))
    assert torch.equal(sampler.sample(torch.arange(5), np.random.default_rng(0)).nodes, fresh.nodes)
    with pytest.raises(InputError, match=r"fanout is \(0,\)"):
        UniformSampler(data.edge_index, 200, (0,))
    with pytest.raises(InputError, match=r"fanout is \(\)"):
        UniformSampler(data.edge_index, 200, ())
    with pytest.raises(InputError, match=r"edge \d+ runs from node"):
        UniformSampler(data.edge_index, 100, (1,))
    with pytest.raises(InputError, match="samples around nodes"):
        sampler.sample_from_edges(None)
