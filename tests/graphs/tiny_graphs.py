"""Graphs so small that a training on them takes a blink, and what it is told."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from stillroom.graphs.networks import GNNOptions
from stillroom.graphs.node_data import NodeData, node_data
from stillroom.graphs.options import SBMOptions
from stillroom.training.recipe import Recipe

SBM = SBMOptions(nodes=90, classes=3, degree=4, features=5, per_class=6, val=24, test=30)
NETWORK = GNNOptions(width=4, dropout=0.2)
RECIPE = Recipe(epochs=3, batch_size=7, optimizer="adam", lr=0.02, schedule="constant")


def random_edges(nodes: int, count: int, *, loops: bool = True, seed: int = 0) -> Tensor:
    """Return edges that go both ways, each once, and perhaps a self loop of every node."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(nodes, (2, count), generator=generator)
    ends = ends[:, ends[0] != ends[1]]
    parts = [ends, ends.flip(0), *([torch.arange(nodes).expand(2, nodes)] if loops else [])]
    return torch.unique(torch.cat(parts, 1), dim=1)


def several_graphs(*, sparse: bool = False) -> NodeData:
    """Five graphs of nodes with several labels: three to train on, one to validate on and one to test on."""
    generator = torch.Generator().manual_seed(3)
    graphs = []
    for number, split in enumerate(("train", "train", "train", "val", "test")):
        nodes = 16 + number
        x = torch.randn(nodes, 6, generator=generator).relu()
        y = (x[:, :4] + 0.3 * torch.randn(nodes, 4, generator=generator) > 0.4).float()
        masks = {f"{each}_mask": torch.full((nodes,), each == split) for each in ("train", "val", "test")}
        edge_index = random_edges(nodes, 30, loops=False, seed=number)
        graphs.append(Data(x=x.to_sparse_csr() if sparse else x, edge_index=edge_index, y=y, **masks))
    return node_data("several", graphs)
