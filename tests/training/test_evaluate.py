"""Evaluation of a classifier."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stillroom.errors import InputError
from stillroom.training.evaluate import accuracy, predictions, to_device
from stillroom.training.fabric import make_fabric


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    net[2].eval()  # a frozen part
    return net


def test_accuracy_and_cross_entropy_are_those_of_all_samples_together(toy: ModuleType, model: nn.Module) -> None:
    loader = toy.ToyLoader(batch_size=16)
    measured = accuracy(model, loader, make_fabric("cpu"))
    logits = model.eval()(loader.points)
    assert measured["accuracy"] == 100 * (logits.argmax(1) == loader.target).sum().item() / 64
    assert measured["cross_entropy"] == pytest.approx(F.cross_entropy(logits, loader.target).item(), rel=1e-5)


def test_evaluation_gives_every_submodule_its_mode_back(toy: ModuleType, model: nn.Module) -> None:
    before = [module.training for module in model.modules()]
    accuracy(model, toy.ToyLoader(), make_fabric("cpu"))
    predictions(model, toy.ToyLoader(), make_fabric("cpu"))
    assert [module.training for module in model.modules()] == before
    assert before.count(False) == 1
    assert torch.is_grad_enabled()


def test_predictions_come_in_the_loaders_order(toy: ModuleType, model: nn.Module) -> None:
    loader = toy.ToyLoader()
    logits, target = predictions(model, loader, make_fabric("cpu"))
    index = torch.cat([batch.index for batch in loader.epoch(1)])
    assert torch.equal(target, loader.target[index])
    torch.testing.assert_close(logits, model.eval()(loader.points[index]))


def test_nothing_to_evaluate_on_is_an_error(toy: ModuleType, model: nn.Module) -> None:
    with pytest.raises(InputError, match="nothing to evaluate on"):
        accuracy(model, toy.ToyLoader(samples=4), make_fabric("cpu"))


def test_a_device_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="device 'cuda' is not available here"):
        make_fabric("cuda")


class Parts(NamedTuple):
    """A batch of another field: a tensor, none, and a number."""

    x: torch.Tensor
    extra: torch.Tensor | None
    turn: int


def test_a_batch_of_any_kind_is_moved_by_its_tensors() -> None:
    moved = to_device(Parts(torch.ones(2), None, 3), torch.device("meta"))
    assert type(moved) is Parts
    assert moved.x.device.type == "meta"
    assert (moved.extra, moved.turn) == (None, 3)
    batch = Parts(torch.ones(2), torch.ones(1), 3)
    assert to_device(batch, torch.device("cpu")).x is batch.x
