"""Cutting a network in two: the halves are the whole, and share its modules."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn

from stillroom.errors import InputError
from stillroom.models.create import create_model
from stillroom.models.split import split
from stillroom.models.taps import find_taps

CUTS = [
    ("resnet8", "layer2"),
    ("resnet8", "layer3"),
    ("resnet20_a", "layer2.1"),
    ("resnet8", "linear:input"),
    ("vgg8", "blocks.3"),
    ("wrn_16_2", "stages.1"),
    ("mobilenetv2", None),
    ("shufflenet_v2", None),
    ("timm:resnet18", "layer3"),
    ("timm:vit_tiny_patch16_224", "blocks.5"),
    ("timm:convnext_atto", "stages.2"),
    ("torchvision:resnet18", "layer3"),
    ("torchvision:vit_b_16", None),
]


def last_stage(network: nn.Module) -> str:
    return find_taps(network, torch.zeros(2, 3, 32, 32)).stages[-1]


@pytest.mark.parametrize(("name", "at"), CUTS)
def test_the_halves_answer_as_the_whole_and_train_it(name: str, at: str | None) -> None:
    if "vit_b_16" in name:
        network: nn.Module = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
        at = "encoder.layers.encoder_layer_0"
    else:
        network = create_model(name, num_classes=5, in_channels=3, image_size=32)
    at = at or last_stage(network)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network.train()
    trunk, branch = split(network, at, images)
    assert network.training
    network.eval()
    assert torch.equal(branch(trunk(images)), network(images))
    state = network.state_dict()
    halves = {**trunk.state_dict(), **branch.state_dict()}
    assert set(halves) == set(state)
    assert all(halves[key].data_ptr() == state[key].data_ptr() for key in state if state[key].numel())
    if at != "linear:input":
        shared = set(dict(trunk.named_parameters())) & set(dict(branch.named_parameters()))
        assert not shared


def test_a_copy_of_a_part_is_independent() -> None:
    network = create_model("resnet8", num_classes=5, in_channels=3, image_size=16)
    _, branch = split(network, "layer2", torch.zeros(1, 3, 16, 16))
    twin = copy.deepcopy(branch)
    with torch.no_grad():
        twin.get_parameter("linear.bias").fill_(7.0)
    assert not bool((network.get_parameter("linear.bias") == 7).any())


class _SkipsTheCut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        early = self.first(x)
        out: Tensor = self.head((self.second(early) + early).mean((2, 3)))
        return out


class _BranchesInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 2, 1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.first(x), 0.5, self.training)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class _ReadsTheData(_BranchesInTraining):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) if x.sum() > 0 else self.first(-x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.mark.parametrize(
    ("network", "at", "says"),
    [
        (_SkipsTheCut(), "second", "also read what lies before"),
        (_SkipsTheCut(), "secnd", "did you mean 'second'"),
        (_BranchesInTraining(), "first", "something else in training"),
        (_ReadsTheData(), "first", "cannot be traced"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(network: nn.Module, at: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        split(network, at, torch.zeros(1, 1, 4, 4))
    assert "\n" not in str(raised.value)
