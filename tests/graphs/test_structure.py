"""Local structure: against a loop over nodes, and what must hold for every graph."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.errors import InputError
from stillroom.graphs import structure
from stillroom.graphs.propagation import symmetric_norm
from stillroom.graphs.structure import (
    Kernel,
    edge_kernel,
    in_edge_log_softmax,
    local_structure,
    lsp_loss,
    structure_kl,
)

KERNELS = get_args(Kernel)
kernels = st.sampled_from(KERNELS)
quick = settings(max_examples=30, deadline=None)


@st.composite
def graphs(draw: Any, *, edges: int = 0) -> tuple[Tensor, Tensor]:
    """Features [N, 3] in float64 and any edges, with loops, duplicates and nodes without edges."""
    nodes = draw(st.integers(1, 7))
    ends = st.integers(0, nodes - 1)
    pairs = draw(st.lists(st.tuples(ends, ends), min_size=edges, max_size=20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    features = 20 * torch.randn(nodes, 3, generator=generator, dtype=torch.float64)
    return features, torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()


def another(features: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 20 * torch.randn(features.shape, generator=generator, dtype=features.dtype)


def log_structure(features: Tensor, edge_index: Tensor, **options: Any) -> Tensor:
    return in_edge_log_softmax(edge_kernel(features, edge_index, **options), edge_index, len(features))


def naive_kernel(features: Tensor, edge_index: Tensor, kernel: str, scale: float | str) -> Tensor:
    first, second = features[edge_index[0]], features[edge_index[1]]
    raw = {
        "l1_exp": (first - second).abs().sum(1),
        "rbf": ((first - second) ** 2).sum(1),
        "linear": (first * second).sum(1),
        "poly": (first * second).sum(1),
    }[kernel]
    scaled = raw / (raw.detach().abs().mean() if scale == "auto" else scale)
    return {"linear": scaled, "poly": scaled**2}.get(kernel, torch.exp(-scaled))


def naive_structure(features: Tensor, edge_index: Tensor, kernel: str, scale: float | str) -> Tensor:
    values = naive_kernel(features, edge_index, kernel, scale)
    weights = torch.zeros_like(values)
    for node in range(len(features)):
        into = (edge_index[1] == node).nonzero()[:, 0]
        weights = weights.index_put((into,), torch.softmax(values[into], 0))
    return weights


@quick
@given(graph=graphs(edges=1), kernel=kernels, scale=st.sampled_from([100.0, 7.5, "auto"]))
def test_the_weights_are_those_of_a_loop_over_nodes(graph: Any, kernel: Any, scale: Any) -> None:
    features, edge_index = graph
    ours, naive = features.clone().requires_grad_(), features.clone().requires_grad_()
    weights = local_structure(ours, edge_index, kernel=kernel, scale=scale)
    expected = naive_structure(naive, edge_index, kernel, scale)
    if scale == "auto" and not torch.isfinite(expected).all():
        expected = naive_structure(naive, edge_index, kernel, 1.0)  # all distances are 0 and so is their mean
    torch.testing.assert_close(weights, expected)
    cotangent = torch.linspace(-1, 1, len(weights), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * cotangent).sum(), ours)
    (expected_gradient,) = torch.autograd.grad((expected * cotangent).sum(), naive)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-9)


@quick
@given(graph=graphs(), kernel=kernels)
def test_the_weights_of_a_nodes_in_edges_sum_to_one(graph: Any, kernel: Any) -> None:
    features, edge_index = graph
    weights = local_structure(features, edge_index, kernel=kernel)
    sums = torch.zeros(len(features), dtype=torch.float64).index_add(0, edge_index[1], weights)
    has_edges = torch.bincount(edge_index[1], minlength=len(features)) > 0
    torch.testing.assert_close(sums, has_edges.double())


@quick
@given(graph=graphs(edges=1), size=st.sampled_from([0.0, 1.0, 1e4]))
def test_no_weight_of_a_node_is_more_than_e_times_another(graph: Any, size: float) -> None:
    features, edge_index = graph
    logs = log_structure(size * features, edge_index)
    assert torch.isfinite(logs).all()
    for node in edge_index[1].unique():
        own = logs[edge_index[1] == node]
        assert own.max() - own.min() <= 1 + 1e-12


@quick
@given(graph=graphs(edges=1), kernel=kernels)
def test_the_divergence_is_zero_for_equal_structures_and_never_negative(graph: Any, kernel: Any) -> None:
    features, edge_index = graph
    p, q = (log_structure(each, edge_index, kernel=kernel) for each in (features, another(features)))
    assert structure_kl(p, p, edge_index, len(features)) == 0
    assert structure_kl(p, q, edge_index, len(features)) >= -1e-12


@quick
@given(graph=graphs(edges=1), seed=st.integers(0, 99))
def test_the_order_of_the_edges_does_not_matter(graph: Any, seed: int) -> None:
    features, edge_index = graph
    order = torch.randperm(edge_index.shape[1], generator=torch.Generator().manual_seed(seed))
    weights, shuffled = local_structure(features, edge_index), local_structure(features, edge_index[:, order])
    torch.testing.assert_close(shuffled, weights[order])
    losses = [lsp_loss(features, another(features), each) for each in (edge_index, edge_index[:, order])]
    torch.testing.assert_close(losses[0], losses[1])


@quick
@given(graph=graphs(edges=1))
def test_an_edge_that_is_there_twice_counts_twice(graph: Any) -> None:
    features, edge_index = graph
    twice = torch.cat([edge_index, edge_index[:, :1]], dim=1)
    weights = local_structure(features, twice)
    assert weights[0] == weights[-1]
    k = edge_kernel(features, edge_index).exp()
    into = edge_index[1] == edge_index[1, 0]
    torch.testing.assert_close(weights[0], k[0] / (k[into].sum() + k[0]))


@quick
@given(graph=graphs(edges=1), kernel=kernels, factor=st.floats(1e-3, 1e3))
def test_an_automatic_scale_takes_out_the_size_of_the_embeddings(graph: Any, kernel: Any, factor: float) -> None:
    features, edge_index = graph
    plain, scaled = (
        local_structure(each, edge_index, kernel=kernel, scale="auto") for each in (features, factor * features)
    )
    torch.testing.assert_close(plain, scaled, rtol=1e-6, atol=1e-9)


@quick
@given(graph=graphs(edges=1), seed=st.integers(0, 99))
def test_a_mask_compares_the_marked_nodes_only(graph: Any, seed: int) -> None:
    features, edge_index = graph
    N = len(features)
    marked = torch.rand(N, generator=torch.Generator().manual_seed(seed)) > 0.5
    p, q = log_structure(features, edge_index), log_structure(another(features), edge_index)
    each_node = torch.zeros(N, dtype=torch.float64).index_add(0, edge_index[1], p.exp() * (p - q))
    expected = each_node[marked].mean() if marked.any() else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(structure_kl(p, q, edge_index, N, nodes=marked), expected)
    everything = structure_kl(p, q, edge_index, N, nodes=torch.ones(N, dtype=torch.bool))
    torch.testing.assert_close(everything, structure_kl(p, q, edge_index, N))


@quick
@given(graph=graphs(edges=1), kernel=kernels, scale=st.sampled_from([100.0, "auto"]))
def test_the_two_directions_are_each_others_mirror(graph: Any, kernel: Any, scale: Any) -> None:
    features, edge_index = graph
    options: dict[str, Any] = {"kernel": kernel, "scale": scale}
    one = lsp_loss(features, another(features), edge_index, direction="student_teacher", **options)
    other = lsp_loss(another(features), features, edge_index, direction="teacher_student", **options)
    torch.testing.assert_close(one, other)
    p, q = (log_structure(each, edge_index, **options) for each in (features, another(features)))
    torch.testing.assert_close(one, structure_kl(p, q, edge_index, len(features)))


def test_embeddings_of_two_widths_are_compared() -> None:
    edge_index = torch.tensor([[0, 1, 2], [2, 2, 0]])
    assert lsp_loss(torch.randn(3, 2), torch.randn(3, 5), edge_index).ndim == 0


@pytest.mark.parametrize("edges", [0, 1, 4095, 4096, 4097, 9000])
def test_distances_in_pieces_are_the_distances(edges: int) -> None:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(50, (2, edges), generator=generator)  # a fiftieth of them self loops
    ours = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    ours[:10] = ours[0]  # other nodes than the edge's own end at distance 0
    ours.requires_grad_()
    naive = ours.detach().clone().requires_grad_()
    cotangent = torch.randn(edges, generator=generator, dtype=torch.float64)
    value = edge_kernel(ours, edge_index, scale=2.0)
    expected = naive_kernel(naive, edge_index, "l1_exp", 2.0)
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad((v * cotangent).sum(), f) for v, f in ((value, ours), (expected, naive))]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("edges", [1, 2, 3, 4, 6, 7])
def test_the_gradient_in_pieces_is_that_of_finite_differences(edges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "_EDGES_AT_ONCE", 3)
    features = torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    edge_index = torch.tensor([[0, 1, 2, 3, 1, 0, 2], [1, 1, 0, 2, 3, 1, 3]])[:, :edges]  # a loop, a duplicate
    assert torch.autograd.gradcheck(lambda x: edge_kernel(x, edge_index, scale=3.0), features)
    assert torch.autograd.gradcheck(lambda x: local_structure(x, edge_index, scale=3.0), features)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [100.0, "auto"])
def test_equal_embeddings_give_equal_weights_and_no_gradient_of_distance(kernel: Any, scale: Any) -> None:
    edge_index = torch.tensor([[0, 1, 2, 2], [2, 2, 0, 2]])
    for value in (0.0, 3.0):
        features = torch.full((3, 2), value).requires_grad_()
        weights = local_structure(features, edge_index, kernel=kernel, scale=scale)
        torch.testing.assert_close(weights, torch.tensor([1 / 3, 1 / 3, 1.0, 1 / 3]))
        (1e6 * edge_kernel(features, edge_index, kernel=kernel, scale=scale)).sum().backward()
        assert features.grad is not None
        assert torch.isfinite(features.grad).all()
        if kernel in ("l1_exp", "rbf"):
            assert not features.grad.any()


def test_an_automatic_scale_has_no_gradient() -> None:
    edge_index = torch.tensor([[0, 1, 2], [2, 2, 0]])
    automatic = torch.tensor([[0.0], [5.0], [7.0]], requires_grad=True)
    fixed = automatic.detach().clone().requires_grad_()
    weights = torch.tensor([1.0, 2.0, 3.0])
    (edge_kernel(automatic, edge_index, scale="auto") * weights).sum().backward()
    (edge_kernel(fixed, edge_index, scale=(7 + 2 + 7) / 3) * weights).sum().backward()
    torch.testing.assert_close(automatic.grad, fixed.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    features = torch.randn(5, 3).to(dtype).requires_grad_()
    edge_index = torch.randint(5, (2, 9), generator=torch.Generator().manual_seed(0))
    loss = lsp_loss(features, torch.randn(5, 3).to(dtype), edge_index)
    assert loss.dtype is torch.float32
    loss.backward()
    assert features.grad is not None
    assert features.grad.dtype is dtype


def test_a_graph_without_edges_has_no_weights_and_no_divergence() -> None:
    features, none = torch.randn(4, 2, requires_grad=True), torch.zeros(2, 0, dtype=torch.int64)
    for kernel in KERNELS:
        for scale in (100.0, "auto"):
            assert local_structure(features, none, kernel=kernel, scale=scale).shape == (0,)
            assert lsp_loss(features, features, none, kernel=kernel, scale=scale) == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kernel": "cosine"}, "kernel must be l1_exp, rbf, linear or poly, not 'cosine'"),
        ({"scale": 0.0}, "scale must be a finite number above 0, not 0.0"),
        ({"scale": math.nan}, "scale must be"),
        ({"scale": math.inf}, "scale must be"),
        ({"scale": "mean"}, "scale must be auto or a number, not 'mean'"),
        ({"features": torch.zeros(3, 2, 4)}, r"must be \[N, D\] with heads concatenated, not \[3, 2, 4\]"),
        ({"edge_index": torch.zeros(2, 4, dtype=torch.int32)}, r"must be \[2, E\] int64, not \[2, 4\] torch.int32"),
        ({"edge_index": torch.zeros(4, 2, dtype=torch.int64)}, r"must be \[2, E\] int64, not \[4, 2\]"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], match: str) -> None:
    given_: dict[str, Any] = {"features": torch.zeros(3, 2), "edge_index": torch.zeros(2, 4, dtype=torch.int64)}
    with pytest.raises(InputError, match=match):
        edge_kernel(**(given_ | change))


def test_graphs_of_two_sizes_and_unknown_directions_are_refused() -> None:
    edge_index = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(InputError, match="embed 3 and 4 nodes"):
        lsp_loss(torch.zeros(3, 2), torch.zeros(4, 2), edge_index)
    with pytest.raises(InputError, match="direction must be student_teacher or teacher_student, not 'both'"):
        lsp_loss(torch.zeros(3, 2), torch.zeros(3, 2), edge_index, direction="both")  # type: ignore[arg-type]


@quick
@given(graph=graphs())
def test_the_norm_of_edges_both_ways_is_that_of_pyg(graph: Any) -> None:
    from torch_geometric.nn.conv.gcn_conv import gcn_norm

    features, edge_index = graph
    both = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    _, expected = gcn_norm(both, num_nodes=len(features), add_self_loops=False, dtype=torch.float64)
    torch.testing.assert_close(symmetric_norm(both, len(features), torch.float64), expected)


def test_a_hub_counts_all_its_edges_in_half_precision() -> None:
    edge_index = torch.stack([torch.arange(1000), torch.zeros(1000, dtype=torch.int64)])
    norm = symmetric_norm(edge_index, 1000, torch.bfloat16)
    assert norm.dtype is torch.bfloat16
    torch.testing.assert_close(norm.float(), torch.full((1000,), 1000**-0.5), rtol=0.01, atol=0)
