"""The golden files' networks, whose parameters are named as in DGL, as our networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.graphs.networks import GNN, GNNOptions


class PlainFabric:
    """One device, no autocast: what a step needs of Fabric, in the files' float64."""

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()


PLAIN_FABRIC: Any = PlainFabric()


def edges_of(inputs: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([inputs["src"], inputs["dst"]])


def network_of(
    about: Mapping[str, Any], inputs: Mapping[str, Tensor], prefix: str, in_features: int, *, pool: bool = True
) -> GNN:
    """Build the network a case describes and give it the case's weights."""
    conv = {"GCN": "gcn", "GAT": "gat", "SAGE": "sage_pool" if pool else "sage"}[about["arch"]]
    heads = about.get("heads", 1)
    options = GNNOptions(
        conv=conv,
        layers=about.get("num_layers", about.get("num_hidden")),
        width=about["hidden"],
        heads=heads,
        out_heads=about.get("out_heads", heads),
        residual=conv == "gat" and about.get("residual", False),
        dropout=0.0,
        activation="relu" if about.get("activation") == "relu" else "auto",
    )
    network = GNN(in_features, about["num_classes"], options).double()
    with torch.no_grad():
        for name, parameter in parameters_of(network).items():
            parameter.copy_(inputs[prefix + name])
    return network


def parameters_of(network: GNN) -> dict[str, Tensor]:
    """Return a network's parameters under the files' names, in their layout."""
    found: dict[str, Tensor] = {}
    for place, layer in enumerate(network.layers):
        found |= {f"layers.{place}.{name}": value for name, value in _of_layer(network.options.conv, layer).items()}
    return found


def _of_layer(conv: str, layer: Any) -> dict[str, Tensor]:
    if conv == "gcn":
        return {"weight": layer.lin.weight.t(), "bias": layer.bias}
    if conv == "gat":
        gat = layer.conv
        own = {"fc.weight": gat.lin.weight, "attn_l": gat.att_src, "attn_r": gat.att_dst, "bias": gat.bias}
        linear = isinstance(layer.residual, nn.Linear)
        return own | ({"res_fc.weight": layer.residual.weight} if linear else {})
    sage = layer if conv == "sage_pool" else layer.conv
    own = {"fc_self.weight": sage.lin_r.weight, "fc_neigh.weight": sage.lin_l.weight, "bias": sage.lin_l.bias}
    return own | ({"fc_pool.weight": sage.lin.weight, "fc_pool.bias": sage.lin.bias} if conv == "sage_pool" else {})
