"""Graph networks: PyG's layers, called one after the other, with sparse features as with dense ones."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graphs.tiny_graphs import random_edges
from stillroom.errors import InputError, MissingExtraError
from stillroom.graphs._features import csr
from stillroom.graphs.networks import CONVOLUTIONS, GNN, GNNOptions, NodeClassifier
from stillroom.graphs.propagation import symmetric_norm

NODES, FEATURES, CLASSES, WIDTH = 20, 6, 3, 4


def features(*, sparse: bool = False, seed: int = 0) -> Tensor:
    dense = torch.randn(NODES, FEATURES, generator=torch.Generator().manual_seed(seed)).relu()
    return dense.to_sparse_csr() if sparse else dense


def network(conv: str, **options: Any) -> GNN:
    torch.manual_seed(0)
    made = GNN(FEATURES, CLASSES, GNNOptions(**({"conv": conv, "width": WIDTH, "dropout": 0.0} | options)))
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "bias" in name or name.endswith("eps"):  # zeros would hide where they go
                value.copy_(torch.randn(value.shape) * 0.3)
    return made


def outputs(model: nn.Module, x: Tensor, edge_index: Tensor) -> list[Tensor]:
    logits, hidden = model(x, edge_index)
    return [logits, *hidden]


class Plain(nn.Module):
    """The same stack written down with PyG's own layers, their messages as wide as they are there."""

    def __init__(self, like: GNN) -> None:
        super().__init__()
        options, count = like.options, len(like.layers)
        self.elu = options.conv == "gat"
        hidden = options.width * (options.heads if options.conv == "gat" else 1)
        widths = [like.in_features, *[hidden] * options.layers]
        self.layers = nn.ModuleList()
        for place, (layer, before) in enumerate(zip(like.layers, widths, strict=True)):
            last = place == count - 1
            after = like.classes if last else options.width
            make: Callable[[Any, int, int, bool], nn.Module] = getattr(self, f"_{options.conv}")
            self.layers.append(make(layer, before, after, last))

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden = []
        *first, last = self.layers
        for layer in first:
            x = layer(x, edge_index)
            hidden.append(x)
            x = F.elu(x) if self.elu else F.relu(x)
        return last(x, edge_index), tuple(hidden)

    @staticmethod
    def _gcn(layer: Any, before: int, after: int, last: bool) -> nn.Module:
        made = pyg.GCNConv(before, after, add_self_loops=False)
        made.load_state_dict(layer.state_dict())
        return made

    @staticmethod
    def _gat(layer: Any, before: int, after: int, last: bool) -> nn.Module:
        made = pyg.GATConv(before, after, heads=layer.heads, concat=not last, add_self_loops=False)
        state = layer.conv.state_dict()
        if last:
            state["bias"] = state["bias"].view(layer.heads, -1).mean(0)
        made.load_state_dict(state)
        return made

    @staticmethod
    def _sage(layer: Any, before: int, after: int, last: bool) -> nn.Module:
        made = pyg.SAGEConv(before, after, aggr="mean")
        made.load_state_dict(layer.conv.state_dict())
        return made

    @staticmethod
    def _sage_pool(layer: Any, before: int, after: int, last: bool) -> nn.Module:
        made = pyg.SAGEConv(before, after, aggr="max", project=True)
        made.load_state_dict(layer.state_dict())
        return made

    @staticmethod
    def _gin(layer: Any, before: int, after: int, last: bool) -> nn.Module:
        norm, relu, second = layer.conv.nn
        mlp = nn.Sequential(nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), relu, second)
        made = pyg.GINConv(mlp, eps=layer.conv.eps.item(), train_eps=True)
        mlp[0].load_state_dict(layer.first.state_dict())
        mlp[1].load_state_dict(norm.state_dict())
        return made


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_a_network_is_the_stack_of_pygs_layers_in_value_and_gradient(conv: str, training: bool) -> None:
    ours = network(conv, layers=3, heads=2, out_heads=3).double().train(training)
    plain = Plain(ours).double().train(training)
    edge_index = random_edges(NODES, 40)
    found = []
    for model in (ours, plain):
        x = features().double().requires_grad_()
        said = outputs(model, x, edge_index)
        torch.stack([each.square().sum() for each in said]).sum().backward()
        weights = [model.layers[place] for place in range(4)]
        found.append((said, x.grad, [_first_weight(layer).grad for layer in weights]))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected)


def _first_weight(layer: Any) -> Tensor:
    """The weight of the linear map of the neighbours."""
    for name in ("first.weight", "conv.lin_l.weight", "lin_l.weight", "conv.lin.weight", "lin.weight", "nn.0.weight"):
        found = dict(layer.named_parameters()).get(name)
        if found is not None:
            return found
    raise AssertionError(layer)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_sparse_features_give_what_dense_ones_give(conv: str, training: bool) -> None:
    edge_index = random_edges(NODES, 40)
    found = []
    for sparse in (False, True):
        model = network(conv).train(training)
        said = outputs(model, features(sparse=sparse), edge_index)
        torch.stack([each.square().sum() for each in said]).sum().backward()
        found.append((said, [parameter.grad for parameter in model.parameters()]))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_sparse_features_work_in_mixed_precision(conv: str) -> None:
    model, edge_index = network(conv).train(), random_edges(NODES, 40)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(features(sparse=True), edge_index)
    logits.float().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    torch.testing.assert_close(logits.float(), model(features(), edge_index)[0], rtol=0.05, atol=0.05)


def test_dropout_of_sparse_features_keeps_their_places_and_their_expectation() -> None:
    model = GNN(1000, CLASSES, GNNOptions(dropout=0.25)).train()
    seen: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = (torch.rand(200, 1000, generator=torch.Generator().manual_seed(0)) < 0.05).float().to_sparse_csr()
    torch.manual_seed(0)
    model(x, random_edges(200, 300))
    dropped = seen[0]
    assert dropped.layout is torch.sparse_csr
    assert torch.equal(dropped.crow_indices(), x.crow_indices())
    assert torch.equal(dropped.col_indices(), x.col_indices())
    assert dropped.values().unique().tolist() == pytest.approx([0, 4 / 3])
    assert dropped.values().mean() == pytest.approx(1.0, abs=0.03)  # ten thousand values
    model.eval()(x, random_edges(200, 300))
    assert torch.equal(seen[1].values(), x.values())


class Largest(TorchDispatchMode):
    """Notes the most numbers a dense tensor made meanwhile has."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.layout is torch.strided:
                self.count = max(self.count, each.numel())
        return result


@pytest.mark.parametrize("conv", [each for each in CONVOLUTIONS if each != "sage_pool"])
def test_a_training_step_never_makes_sparse_features_dense(conv: str) -> None:
    nodes, width, each = 2000, 1_000_000, 5  # eight gigabytes when dense
    columns = torch.randint(width, (nodes, each), generator=torch.Generator().manual_seed(0)).sort(1).values
    x = csr(torch.arange(0, nodes * each + 1, each), columns.flatten(), torch.ones(nodes * each), (nodes, width))
    model = GNN(width, CLASSES, GNNOptions(conv=conv, width=2, heads=1)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Largest() as largest:
        model(x, random_edges(nodes, 6000))[0].square().mean().backward()
        optimizer.step()
    assert largest.count <= 2 * width  # the weights
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kilobytes


def test_a_first_layer_that_does_not_fit_into_memory_is_one_line() -> None:
    with pytest.raises(InputError, match="sage_pool has a matrix of 3000000 x 3000000 for 3000000 features"):
        GNN(3_000_000, CLASSES, GNNOptions(conv="sage_pool"))


def test_who_takes_sparse_features_says_so() -> None:
    assert [network(conv).takes_sparse for conv in CONVOLUTIONS] == [True] * len(CONVOLUTIONS)
    assert not network("pyg:GATv2Conv").takes_sparse


@pytest.mark.parametrize("name", ["TransformerConv", "GATv2Conv", "GraphConv"])
def test_a_layer_of_pyg_is_used_by_its_name(name: str) -> None:
    model = network(f"pyg:{name}").train()
    kind = getattr(pyg, name)
    assert [type(layer) for layer in model.layers] == [kind] * 3
    assert all(layer.training for layer in model.layers)
    logits, hidden = model(features(), random_edges(NODES, 40))
    assert (logits.shape, [each.shape for each in hidden]) == ((NODES, CLASSES), [(NODES, WIDTH)] * 2)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.layers[0].parameters())


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyG's, of sparse tensors
def test_every_convolution_of_pyg_works_or_is_refused_in_one_line() -> None:
    works, refused = set(), {}
    for name in [each for each in dir(pyg) if each.endswith("Conv")]:
        try:
            model = network(f"pyg:{name}")
        except InputError as error:
            refused[name] = str(error)
        else:
            said = outputs(model, features(), random_edges(NODES, 40))
            assert [each.shape[1] for each in said] == [CLASSES, WIDTH, WIDTH]
            works.add(name)
    assert not [name for name, said in refused.items() if "\n" in said]
    assert works >= {"GCNConv", "SAGEConv", "GATConv", "GATv2Conv", "TransformerConv", "TAGConv", "ResGatedGraphConv"}


@pytest.mark.parametrize(
    ("conv", "said"),
    [
        ("gcnn", "unknown convolution 'gcnn'; did you mean 'gcn'"),
        ("pyg:GATv2conv", "unknown convolution of torch_geometric.nn 'GATv2conv'; did you mean 'GATv2Conv'"),
        ("pyg:ChebConv", r"pyg:ChebConv is not made with two widths.*'K'.*; pass a module of your own$"),
        ("pyg:NNConv", r"pyg:NNConv is not made with two widths.*'nn'"),
        ("pyg:GCN2Conv", r"called with \(x, edge_index\) alone.*GCN2Conv.forward\(\) missing"),
        ("pyg:APPNP", "unknown convolution"),
        ("pyg:Linear", "unknown convolution"),
        ("pyg:", "unknown convolution"),
        ("pyg:MixHopConv", r"has outputs of shape \[2, 12\] and not \[2, 4\]"),
    ],
)
def test_a_convolution_that_cannot_be_used_is_one_line(conv: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        GNN(FEATURES, CLASSES, GNNOptions(conv=conv, width=WIDTH, layers=1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": 0}, "network.layers is 0; it must be at least 1"),
        ({"width": -3}, "network.width is -3; it must be at least 1"),
        ({"heads": 0}, "network.heads is 0"),
        ({"out_heads": 0}, "network.out_heads is 0"),
        ({"dropout": 1.0}, "network.dropout is 1.0; it must be at least 0 and below 1"),
        ({"dropout": float("nan")}, "network.dropout is nan"),
        ({"attention_dropout": -0.1}, "network.attention_dropout is -0.1"),
        ({"residual": True}, "network.residual is there for gat only, not for gcn"),
        ({"activation": "rleu"}, "unknown network.activation 'rleu'; did you mean 'relu'"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        GNNOptions(**options)


@pytest.mark.parametrize("conv", [*CONVOLUTIONS, "pyg:TransformerConv"])
@pytest.mark.parametrize("edges", ["none", "some nodes have none"])
def test_nodes_without_edges_have_finite_outputs_and_gradients(conv: str, edges: str) -> None:
    edge_index = random_edges(NODES // 2, 10, loops=False)[:, : None if edges != "none" else 0]
    model = network(conv).train()
    said = outputs(model, features(), edge_index)
    torch.stack([each.square().sum() for each in said]).sum().backward()
    assert all(torch.isfinite(each).all() for each in said)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@settings(max_examples=15, deadline=None)
@given(conv=st.sampled_from(CONVOLUTIONS), seed=st.integers(0, 10**6), count=st.integers(0, 60))
def test_the_names_of_the_nodes_do_not_matter(conv: str, seed: int, count: int) -> None:
    model, edge_index = network(conv).double().eval(), random_edges(NODES, count, seed=seed)
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(seed))
    x = features(seed=seed).double()
    said = outputs(model, x, edge_index)
    renamed = outputs(model, x[order], order.argsort()[edge_index])
    torch.testing.assert_close(renamed, [each[order] for each in said])


def test_the_residual_is_the_input_where_it_is_as_wide_and_a_linear_map_where_not() -> None:
    model = network("gat", residual=True, heads=2, layers=2, out_heads=3).eval()
    assert model.layers[0].residual is None
    assert isinstance(model.layers[1].residual, nn.Identity)
    linear = model.layers[2].residual
    assert isinstance(linear, nn.Linear)
    assert (linear.weight.shape, linear.bias) == ((3 * CLASSES, 2 * WIDTH), None)
    edge_index = random_edges(NODES, 40)
    logits, hidden = model(features(), edge_index)
    inside = F.elu(hidden[0])
    torch.testing.assert_close(hidden[1], model.layers[1].conv(inside, edge_index) + inside)
    inside = F.elu(hidden[1])
    heads = model.layers[2].conv(inside, edge_index) + linear(inside)
    torch.testing.assert_close(logits, heads.view(NODES, 3, CLASSES).mean(1))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20))
def test_gcn_divides_by_the_degrees_at_both_ends_of_directed_edges(pairs: list[tuple[int, int]]) -> None:
    edge_index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
    adjacency = torch.zeros(6, 6, dtype=torch.float64)
    for source, destination in pairs:
        adjacency[destination, source] += 1
    inverse_root = [adjacency.sum(axis).clamp(min=1).rsqrt() for axis in (0, 1)]
    scaled = inverse_root[1][:, None] * adjacency * inverse_root[0]
    norm = symmetric_norm(edge_index, 6, torch.float64)
    built = torch.zeros(6, 6, dtype=torch.float64)
    for (source, destination), value in zip(pairs, norm.tolist(), strict=True):
        built[destination, source] += value
    torch.testing.assert_close(built, scaled)
    model = network("gcn", layers=1).double().eval()
    x = features()[:6].double()
    _, hidden = model(x, edge_index)
    torch.testing.assert_close(hidden[0], scaled @ model.layers[0].lin(x) + model.layers[0].bias)


def test_degrees_are_counted_in_full_precision() -> None:
    hub = torch.stack([torch.arange(1, 1001), torch.zeros(1000, dtype=torch.int64)])
    assert symmetric_norm(hub, 1001, torch.bfloat16)[0].item() == pytest.approx(1000**-0.5, rel=0.01)


@pytest.mark.parametrize(("conv", "activation", "elu"), [("gat", "auto", True), ("gcn", "auto", False)])
def test_attention_is_followed_by_elu_and_the_others_by_relu(conv: str, activation: str, elu: bool) -> None:
    x = torch.tensor([-1.0, 2.0])
    assert torch.equal(network(conv, activation=activation).activate(x), F.elu(x) if elu else F.relu(x))
    assert torch.equal(network(conv, activation="elu").activate(x), F.elu(x))
    assert torch.equal(network(conv, activation="relu").activate(x), F.relu(x))


def test_a_batch_norm_over_a_single_node_is_one_line() -> None:
    alone = torch.zeros(1, FEATURES), torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(InputError, match="gin's batch norm needs at least 2 nodes in every batch"):
        network("gin").train()(*alone)
    assert torch.isfinite(network("gin").eval()(*alone)[0]).all()


def test_a_classifier_is_called_like_any_model_of_pyg() -> None:
    model, edge_index = network("sage").eval(), random_edges(NODES, 40)
    assert torch.equal(NodeClassifier(model)(features(), edge_index), model(features(), edge_index)[0])


def test_the_default_widths_follow_the_heads() -> None:
    model = network("gat", heads=3, layers=2)
    hidden = model(features(), random_edges(NODES, 40))[1]
    assert [each.shape[1] for each in hidden] == [3 * WIDTH] * 2
    sizes = [(layer.conv.in_channels, layer.conv.out_channels) for layer in model.layers]
    assert all(after * 3 == before for (_, after), (before, _) in pairwise(sizes))


def test_without_pyg_the_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.delitem(sys.modules, "stillroom.graphs._torch_geometric", raising=False)
    with pytest.raises(MissingExtraError, match=r"torch-geometric is not installed.*stillroom\[graphs\]"):
        GNN(FEATURES, CLASSES)
