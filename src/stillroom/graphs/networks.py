"""Graph neural networks that show their hidden layers, made of PyG's layers."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import InputError, unknown_name
from stillroom.graphs.propagation import symmetric_norm
from stillroom.models.weights import first_line

__all__ = ["CONVOLUTIONS", "GNN", "GNNOptions", "NodeClassifier"]

CONVOLUTIONS = ("gcn", "gat", "sage", "sage_pool", "gin")
_PYG = "pyg:"


@dataclass(frozen=True, kw_only=True)
class GNNOptions:
    """Shape of a graph neural network; the defaults suit citation graphs.

    Args:
        conv: Convolution: gcn, gat, sage (mean of the neighbours), sage_pool (their maximum), gin, or pyg:NAME for any
            of torch_geometric.nn that is made with two widths and takes (x, edge_index), say pyg:TransformerConv.
        layers: Hidden layers; the layer of the classes comes on top.
        width: Outputs of a hidden layer, for gat of each head.
        heads: Attention heads of gat's hidden layers, which are concatenated.
        out_heads: Attention heads of gat's last layer, of which the mean is taken.
        residual: Add a layer's input to its output, but for the first layer (gat only).
        dropout: Share of the inputs of every layer that is dropped in training.
        attention_dropout: Share of gat's attention weights that is dropped in training.
        activation: Between layers; auto is elu for gat and relu for the others.

    Raises:
        InputError: A value is outside its range.
    """

    conv: str = "gcn"
    layers: int = 2
    width: int = 64
    heads: int = 3
    out_heads: int = 3
    residual: bool = False
    dropout: float = 0.5
    attention_dropout: float = 0.0
    activation: Literal["auto", "relu", "elu"] = "auto"

    def __post_init__(self) -> None:
        if self.conv not in CONVOLUTIONS and not self.conv.startswith(_PYG):
            raise unknown_name("convolution", self.conv, [*CONVOLUTIONS, f"{_PYG}NAME"])
        for name in ("layers", "width", "heads", "out_heads"):
            if getattr(self, name) < 1:
                raise InputError(f"network.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"network.{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.residual and self.conv != "gat":
            raise InputError(f"network.residual is there for gat only, not for {self.conv}")
        known = get_args(Literal["auto", "relu", "elu"])
        if self.activation not in known:
            raise unknown_name("network.activation", self.activation, known)


class GNN(nn.Module):
    """A stack of graph convolutions that returns its logits and the outputs of its hidden layers.

    No layer adds self loops; the graph has them or not. gcn divides by the degrees at both ends, see
    :func:`~stillroom.graphs.propagation.symmetric_norm`.

    Args:
        in_features: F of the nodes' features.
        classes: C.
        options: Its shape.

    Shapes:
        x: [N, F], dense or sparse CSR (see ``takes_sparse``); edge_index: [2, E], int64.

    Returns:
        Logits [N, C], and the L outputs [N, D] of the hidden layers before their activation, heads concatenated.

    Raises:
        MissingExtraError: PyTorch Geometric is not installed.
        InputError: There is no such layer, or it cannot be made with two widths and called with a graph.

    Example:
        >>> network = GNN(5, 3, GNNOptions(conv="sage", layers=2, width=8))
        >>> logits, hidden = network(torch.zeros(4, 5), torch.tensor([[0, 1], [1, 0]]))
        >>> logits.shape, [each.shape[1] for each in hidden]
        (torch.Size([4, 3]), [8, 8])
    """

    def __init__(self, in_features: int, classes: int, options: GNNOptions | None = None) -> None:
        super().__init__()
        self.options = options = options or GNNOptions()
        self.in_features, self.classes = in_features, classes
        hidden = options.width * (options.heads if options.conv == "gat" else 1)
        widths = [in_features, *[hidden] * options.layers]
        layers = [
            _layer(options, before, options.width, last=False, first=n == 0) for n, before in enumerate(widths[:-1])
        ]
        self.layers = nn.ModuleList([*layers, _layer(options, hidden, classes, last=True, first=False)])

    @property
    def takes_sparse(self) -> bool:
        """Whether the first layer multiplies sparse features without making them dense."""
        return self.options.conv in CONVOLUTIONS

    @property
    def reads_degrees(self) -> bool:
        """Whether a layer divides by degrees, so that a node whose neighbours are left out answers something else."""
        return self.options.conv == "gcn" or self.options.conv not in CONVOLUTIONS

    def activate(self, hidden: Tensor) -> Tensor:
        """Apply the activation that stands between the layers."""
        name = self.options.activation
        if name == "elu" or (name == "auto" and self.options.conv == "gat"):
            return F.elu(hidden)
        return F.relu(hidden)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return logits and hidden layers."""
        shared: tuple[Tensor, ...] = ()
        if self.options.conv == "gcn":
            shared = (symmetric_norm(edge_index, x.shape[0], self.layers[-1].bias.dtype),)  # type: ignore[arg-type]
        hidden: list[Tensor] = []
        *first, last = self.layers
        for layer in first:
            # Sparse features are multiplied in float32: torch knows no other product of theirs on a CPU.
            full = x.layout is torch.sparse_csr
            with torch.autocast(x.device.type, enabled=False) if full else contextlib.nullcontext():
                x = layer(self._drop(x), edge_index, *shared)
            hidden.append(x)
            x = self.activate(x)
        logits: Tensor = last(self._drop(x), edge_index, *shared)
        return logits, tuple(hidden)

    def _drop(self, x: Tensor) -> Tensor:
        p = self.options.dropout
        if not self.training or p == 0:
            return x
        if x.layout is not torch.sparse_csr:
            return F.dropout(x, p)
        # Zeros stay zeros when they are dropped.
        values = F.dropout(x.values(), p)
        return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False)


class NodeClassifier(nn.Module):
    """A network without its hidden layers: what is deployed, called like any PyG model.

    Args:
        network: Returns logits and hidden layers.

    Shapes:
        x: [N, F]; edge_index: [2, E], int64; the result: logits [N, C].

    Example:
        >>> model = NodeClassifier(GNN(5, 3))
        >>> model(torch.zeros(4, 5), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([4, 3])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(x, edge_index)[0]
        return logits


def _layer(options: GNNOptions, before: int, after: int, *, last: bool, first: bool) -> nn.Module:
    from stillroom.graphs._torch_geometric import layers

    if options.conv == "gcn":
        # The weights of the edges come with the graph.
        return layers.GCNConv(before, after, normalize=False)  # type: ignore[no-any-return]
    if options.conv == "gat":
        return _Attention(options, before, after, last=last, residual=options.residual and not first)
    if options.conv == "sage":
        return _MeanSAGE(before, after)
    if options.conv == "sage_pool":
        try:
            return layers.SAGEConv(before, after, aggr="max", project=True)  # type: ignore[no-any-return]
        except RuntimeError:  # torch's, of memory
            raise InputError(
                f"sage_pool has a matrix of {before} x {before} for {before} features, which does not fit into memory; "
                "use sage"
            ) from None
    if options.conv == "gin":
        return _GIN(before, after)
    return _layer_of_pyg(options.conv.removeprefix(_PYG), before, after)


def _layer_of_pyg(name: str, before: int, after: int) -> nn.Module:
    """Make any layer of PyG that is made with two widths, and try it on two nodes."""
    from stillroom.graphs._torch_geometric import layers

    known = {
        each: found
        for each, found in vars(layers).items()
        if each.endswith("Conv") and isinstance(found, type) and issubclass(found, layers.MessagePassing)
    }
    if name not in known:
        raise unknown_name("convolution of torch_geometric.nn", name, known)
    pair = torch.tensor([[0, 1], [1, 0]])
    try:
        made: nn.Module = known[name](before, after)
        with torch.no_grad():
            shape = list(made.eval()(torch.zeros(2, before), pair).shape)
    except Exception as error:  # whatever a layer says that takes something else
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"{_PYG}{name} is not made with two widths and called with (x, edge_index) alone ({why}); pass a module of "
            "your own"
        ) from None
    if shape != [2, after]:
        raise InputError(f"{_PYG}{name} has outputs of shape {shape} and not {[2, after]}; pass a module of your own")
    return made.train()


class _Attention(nn.Module):
    """A GAT layer with the residual of the released code: the input itself where it is as wide, else a linear map."""

    def __init__(self, options: GNNOptions, before: int, after: int, *, last: bool, residual: bool) -> None:
        super().__init__()
        from stillroom.graphs._torch_geometric import layers

        self.heads, self.last = options.out_heads if last else options.heads, last
        # The heads are concatenated in the last layer too, so that each keeps a bias of its own; then their mean is
        # taken.
        self.conv = layers.GATConv(
            before, after, heads=self.heads, dropout=options.attention_dropout, add_self_loops=False, concat=True
        )
        wide = self.heads * after
        self.residual: nn.Module | None = None
        if residual:
            self.residual = nn.Identity() if before == wide else nn.Linear(before, wide, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv(x, edge_index)
        if self.residual is not None:
            out = out + self.residual(x)
        return out.view(out.shape[0], self.heads, -1).mean(1) if self.last else out


class _MeanSAGE(nn.Module):
    """PyG's GraphSAGE layer, its neighbours' linear map applied before their mean: the same, with narrow messages."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        from stillroom.graphs._torch_geometric import layers

        self.conv = layers.SAGEConv(before, after, aggr="mean")

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        conv: Any = self.conv
        neighbours = F.linear(x, conv.lin_l.weight)
        mean = conv.propagate(edge_index, x=(neighbours, neighbours), size=None)
        out: Tensor = mean + conv.lin_l.bias + conv.lin_r(x)
        return out


class _GIN(nn.Module):
    """A GIN layer whose MLP (linear, batch norm, ReLU, linear) has its first, linear map applied before the sum."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        from stillroom.graphs._torch_geometric import layers

        self.first = nn.Linear(before, after, bias=False)  # the batch norm has the bias
        self.conv = layers.GINConv(
            nn.Sequential(nn.BatchNorm1d(after), nn.ReLU(), nn.Linear(after, after)), train_eps=True
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if self.training and x.shape[0] < 2:
            raise InputError("gin's batch norm needs at least 2 nodes in every batch, not 1; change batch_size")
        out: Tensor = self.conv(F.linear(x, self.first.weight), edge_index)
        return out
