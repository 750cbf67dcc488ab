"""The moving average follows its rule, forgets where it began, and is part of what a checkpoint keeps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distillation.method_inputs import HostReads
from stillroom.errors import InputError
from stillroom.training.ema import EMA


class Value(nn.Module):
    """One trained number and one that is only kept."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.register_buffer("seen", torch.tensor([value]))

    def set(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.seen.fill_(value)


def followed(values: list[float], decay: float) -> EMA:
    module = Value(values[0])
    average = EMA(module, decay)
    for value in values[1:]:
        module.set(value)
        average.update(module)
    return average


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=40), st.floats(0, 0.9999))
def test_the_average_follows_its_rule(values: list[float], decay: float) -> None:
    expected = values[0]
    for t, value in enumerate(values[1:]):
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * value
    # The weight of an update is a float32 number.
    assert math.isclose(followed(values, decay).module.weight.item(), expected, rel_tol=1e-5, abs_tol=1e-5)


def test_the_initial_weights_are_forgotten_however_long_the_memory_is() -> None:
    # The product of (1 + t) / (10 + t) over 1000 updates is about 1e-21.
    assert abs(followed([1e6] + [1.0] * 1000, 0.999999).module.weight.item() - 1) < 1e-9


def test_buffers_are_those_of_the_latest_module() -> None:
    assert followed([1.0, 2.0, 5.0], 0.9).module.seen.item() == 5.0


def test_the_original_is_not_touched_and_the_average_wants_no_gradient() -> None:
    module = Value(1.0)
    average = EMA(module, 0.5)
    module.set(3.0)
    average.update(module)
    assert module.weight.item() == 3.0
    assert module.weight.requires_grad
    assert not average.module.weight.requires_grad


def test_a_stored_average_goes_on_as_if_it_had_never_stopped() -> None:
    values = [1.0, 4.0, -2.0, 0.5, 3.0]
    first = followed(values[:3], 0.999)
    again = EMA(Value(7.0), 0.999)
    again.load_state_dict(first.state_dict())
    module = Value(0.0)
    for value in values[3:]:
        module.set(value)
        again.update(module)
    whole = followed(values, 0.999)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_an_update_reads_nothing_on_the_host() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = EMA(module, 0.99)
    with HostReads() as reads:
        average.update(module)
    assert reads.found == []


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match="decay of the moving average"):
        EMA(Value(1.0), decay)
