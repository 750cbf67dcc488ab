"""Stored students: what comes back is what was saved, and files are not believed blindly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

from graphs.tiny_graphs import random_edges
from stillroom.errors import InputError
from stillroom.graphs.networks import CONVOLUTIONS, GNN, GNNOptions, NodeClassifier
from stillroom.graphs.store import StudentCard, load_student, save_student

NODES, FEATURES, CLASSES = 12, 5, 3
OPTIONS = GNNOptions(width=4, heads=2)


class Own(nn.Module):
    """A student that is not ours."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first, self.last = SAGEConv(FEATURES, width), SAGEConv(width, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden = self.first(x, edge_index)
        return self.last(hidden.relu(), edge_index), (hidden,)


def card(network: GNNOptions | None = OPTIONS) -> StudentCard:
    return StudentCard(
        network=network,
        in_features=FEATURES,
        classes=CLASSES,
        multilabel=True,
        graph={"undirected": True, "self_loops": "add"},
        extra={"method": {"name": "oad", "alpha": False}, "val": 81.25, "nothing": None},
    )


def graph() -> Data:
    x = torch.randn(NODES, FEATURES, generator=torch.Generator().manual_seed(0))
    return Data(x=x, edge_index=random_edges(NODES, 20))


def trained(options: GNNOptions) -> GNN:
    """A network whose running statistics moved, so that forgetting them shows."""
    torch.manual_seed(0)
    made = GNN(FEATURES, CLASSES, options).train()
    with torch.no_grad():
        made(graph().x, graph().edge_index)
    return made.eval()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    save_student(tmp_path, trained(OPTIONS), card())
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        *(replace(OPTIONS, conv=conv) for conv in (*CONVOLUTIONS, "pyg:TransformerConv")),
        GNNOptions(conv="gat", layers=3, width=4, heads=2, out_heads=1, residual=True, dropout=0, activation="relu"),
        GNNOptions(layers=1, width=7, dropout=0.25, activation="elu"),
    ],
    ids=lambda options: f"{options.conv}-{options.layers}",
)
def test_what_is_loaded_answers_as_what_was_saved(options: GNNOptions, tmp_path: Path) -> None:
    model, data = trained(options), graph()
    save_student(tmp_path, model, card(options))
    loaded = load_student(tmp_path)
    assert loaded.card == card(options)
    assert not any(module.training for module in loaded.model.modules())
    assert torch.equal(loaded.model(data.x, data.edge_index), model(data.x, data.edge_index)[0])
    again = load_student(tmp_path / "model.json").model
    assert torch.equal(again(data.x, data.edge_index), loaded.model(data.x, data.edge_index))


def test_a_module_of_the_users_own_comes_back_into_one_like_it(tmp_path: Path) -> None:
    own, data = Own(), graph()
    save_student(tmp_path, own, card(None))
    loaded = load_student(tmp_path, Own())
    assert isinstance(loaded.model, NodeClassifier)
    assert loaded.card == card(None)
    assert torch.equal(loaded.model(data.x, data.edge_index), own(data.x, data.edge_index)[0])
    with pytest.raises(InputError, match=r"is of a module of your own; pass one like it: load_student\(path, network"):
        load_student(tmp_path)
    with pytest.raises(InputError, match=r"do not fit Own: 'first.lin_l.weight' has shape \[4, 5\]"):
        load_student(tmp_path, Own(width=5))


def test_a_network_of_ours_may_be_loaded_into_a_module_too(stored: Path) -> None:
    into = GNN(FEATURES, CLASSES, OPTIONS)
    load_student(stored, into)
    assert all(torch.equal(a, b) for a, b in zip(into.parameters(), trained(OPTIONS).parameters(), strict=True))


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def of_another_network(folder: Path) -> None:
    save_student(folder / "other", trained(replace(OPTIONS, layers=3)), card(replace(OPTIONS, layers=3)))
    (folder / "other" / "model.safetensors").rename(folder / "model.safetensors")


def with_another_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["layers.0.bias"] = state["layers.0.bias"] + 1
    save_file(state, folder / "model.safetensors")


def missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def told(**changes: Any) -> Callable[[Path], None]:
    """Change what the card says."""

    def change(folder: Path) -> None:
        about = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(about | changes))

    return change


def network(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (asdict(OPTIONS) | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "model.safetensors is damaged"),
        (of_another_network, "is not what model.json describes"),
        (with_another_weight, "is not what model.json describes"),
        (missing, "does not exist"),
        (lambda folder: (folder / "model.json").unlink(), "does not exist; a stored model is model.json and"),
        (lambda folder: (folder / "model.json").write_text('{"format": '), "is damaged or not readable"),
        (lambda folder: (folder / "model.json").write_text("[]"), "describes no stillroom graph student"),
        (told(format="stillroom-denoiser"), "describes no stillroom graph student"),
        (told(format_version=2), "has format version 2, this stillroom reads 1"),
        (told(network=network(gate=True)), "describes a network this version does not know; update stillroom"),
        (told(network=[]), "describes a network this version does not know"),
        (told(network=network(width=...)), "'width' must be a whole number, not None"),
        (told(network=network(width=5)), r"do not fit GNN: 'layers.0.bias' has shape \[4\], the network needs \[5\]"),
        (told(network=network(layers="2")), "'layers' must be a whole number, not '2'"),
        (told(network=network(layers=0)), "'layers' must lie in 1..1000000"),
        (told(network=network(dropout=1.5)), "network.dropout is 1.5; it must be"),
        (told(network=network(conv="gcm")), "unknown convolution 'gcm'"),
        (told(network=network(conv="pyg:os")), "unknown convolution of torch_geometric.nn 'os'"),
        (told(network=network(activation="gelu")), "unknown network.activation 'gelu'"),
        (told(in_features=6), r"has shape \[4, 5\], the network needs \[4, 6\]"),
        (told(classes=None), "'classes' must be a whole number"),
        (told(graph="cora"), "'graph' must be an object"),
        (told(weights_sha256=None), "'weights_sha256' must be a text"),
    ],
)
def test_what_is_damaged_or_foreign_is_one_line(stored: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(stored)
    with pytest.raises(InputError, match=said) as caught:
        load_student(stored)
    assert "\n" not in str(caught.value)


def test_a_card_that_json_does_not_know_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model card cannot be stored"):
        save_student(tmp_path / "student", trained(OPTIONS), replace(card(), extra={"graph": graph()}))
    assert list(tmp_path.iterdir()) == []
