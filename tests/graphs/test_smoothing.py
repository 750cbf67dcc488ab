"""Measures of over-smoothing: what they are for known embeddings, and what does not change them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from graphs.tiny_graphs import random_edges
from stillroom.graphs import smoothing
from stillroom.graphs.smoothing import dirichlet_energy, mean_average_distance

MEASURES = (dirichlet_energy, mean_average_distance)

graphs = st.tuples(st.integers(2, 12), st.integers(1, 30), st.integers(0, 10**6))


def drawn(graph: tuple[int, int, int], *, loops: bool = False) -> tuple[Tensor, Tensor]:
    nodes, count, seed = graph
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(nodes, 3, generator=generator).double(), random_edges(nodes, count, loops=loops, seed=seed)


def ring(nodes: int) -> Tensor:
    ahead = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
    return torch.cat([ahead, ahead.flip(0)], 1)


@settings(max_examples=40, deadline=None)
@given(graphs)
def test_dirichlet_energy_is_the_quadratic_form_of_the_laplacian(graph: tuple[int, int, int]) -> None:
    h, edge_index = drawn(graph)
    adjacency = torch.zeros(len(h), len(h), dtype=h.dtype)
    adjacency[edge_index[1], edge_index[0]] = 1
    degree = adjacency.sum(1)
    scaled = (1 + degree).rsqrt()
    # Of the graph with a self loop at every node: I - D^-1/2 (A + I) D^-1/2.
    laplacian = torch.eye(len(h), dtype=h.dtype) - scaled[:, None] * (adjacency + torch.eye(len(h))) * scaled
    expected = (h.T @ laplacian @ h).trace() / h.square().sum()
    torch.testing.assert_close(dirichlet_energy(h, edge_index), expected)


@settings(max_examples=40, deadline=None)
@given(graphs)
def test_mean_average_distance_is_a_mean_of_cosines(graph: tuple[int, int, int]) -> None:
    h, edge_index = drawn(graph)
    cosine = torch.nn.functional.cosine_similarity(h[:, None], h[None], dim=2)
    near = [edge_index[0, edge_index[1] == node] for node in range(len(h))]
    means = [(1 - cosine[node, sources]).mean() for node, sources in enumerate(near) if len(sources)]
    found = mean_average_distance(h, edge_index)
    if means:
        torch.testing.assert_close(found, torch.stack(means).mean())
    else:
        assert found.isnan()


@settings(max_examples=30, deadline=None)
@given(graphs, st.floats(1e-3, 1e3))
def test_they_lie_between_0_and_2_and_neither_scale_nor_self_loops_count(
    graph: tuple[int, int, int], scale: float
) -> None:
    h, edge_index = drawn(graph)
    looped = drawn(graph, loops=True)[1]
    for measure in MEASURES:
        value = measure(h, edge_index)
        if value.isnan():  # no edges, no distance
            continue
        assert 0 <= value <= 2
        torch.testing.assert_close(measure(h * scale, edge_index), value)
        torch.testing.assert_close(measure(h, looped), value)


@pytest.mark.parametrize("nodes", [3, 8])
def test_equal_embeddings_of_a_regular_graph_are_smoothed_out(nodes: int) -> None:
    same = torch.tensor([1.0, -2.0, 3.0]).expand(nodes, 3)
    for measure in MEASURES:
        assert measure(same, ring(nodes)).item() == pytest.approx(0, abs=1e-6)


def test_opposite_neighbours_are_as_far_apart_as_can_be() -> None:
    signs = torch.tensor([[1.0], [-1.0]]).repeat(4, 1)
    assert mean_average_distance(signs, ring(8)).item() == pytest.approx(2)
    assert dirichlet_energy(signs, ring(8)).item() == pytest.approx(4 / 3)  # 2 d / (d + 1) of degree d


def test_embeddings_of_zeros_and_graphs_without_edges_are_no_accident() -> None:
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert dirichlet_energy(torch.zeros(4, 2), ring(4)) == 0
    assert dirichlet_energy(torch.ones(4, 2), none) == 0
    assert mean_average_distance(torch.ones(4, 2), none).isnan()
    assert torch.isfinite(mean_average_distance(torch.zeros(4, 2), ring(4)))


def test_edges_are_taken_in_pieces_without_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    h, edge_index = drawn((12, 40, 1))
    expected = [measure(h, edge_index) for measure in MEASURES]
    monkeypatch.setattr(smoothing, "_EDGES_AT_ONCE", 7)
    for measure, value in zip(MEASURES, expected, strict=True):
        torch.testing.assert_close(measure(h, edge_index), value)


def test_they_are_measured_in_full_precision_and_without_graph() -> None:
    h, edge_index = drawn((12, 40, 1))
    learned = h.bfloat16().requires_grad_()
    for measure in MEASURES:
        value = measure(learned, edge_index)
        assert (value.dtype, value.requires_grad) == (torch.float32, False)
        torch.testing.assert_close(value, measure(learned.detach().float(), edge_index))
