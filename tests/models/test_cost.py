"""Costs are counted by the book, and counting leaves no trace on the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stillroom.models.cost import count_flops, count_parameters, measure, measure_latency


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, 10)
        self.batches: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(tuple(images.shape))
        return self.classifier(self.norm(self.conv(images)).mean((2, 3)))


PARAMETERS = 3 * 4 * 9 + 2 * 4 + 4 * 10 + 10
FLOPS = 2 * (3 * 4 * 9 * 8 * 8 + 4 * 10)  # two per multiply-add of the convolution and the classifier
BUFFERS = (4 + 4) * 4 + 8  # running mean and variance in float32, one int64 counter


def test_a_convolution_and_a_linear_layer_cost_what_the_formula_says() -> None:
    cost = measure(Net(), (3, 8, 8))
    assert cost.parameters == PARAMETERS
    assert cost.flops == FLOPS
    assert cost.size_mb == pytest.approx((4 * PARAMETERS + BUFFERS) / 1e6)
    assert cost.latency_ms > 0


def test_shared_and_frozen_parameters_count_once() -> None:
    layer = nn.Linear(3, 3).requires_grad_(False)
    assert count_parameters(nn.Sequential(layer, layer)) == 12


def test_attention_is_counted_also_where_it_is_fused() -> None:
    tokens, width, hidden = 10, 16, 32
    layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
    projections = 2 * tokens * width * (3 * width + width)
    attention = 2 * 2 * tokens * tokens * width
    feed_forward = 2 * 2 * tokens * width * hidden
    assert count_flops(layer, (tokens, width)) == projections + attention + feed_forward
    assert torch.backends.mha.get_fastpath_enabled()


def test_measuring_leaves_modes_hooks_buffers_and_gradients_as_they_were() -> None:
    model = Net().train()
    model.norm.eval()  # a frozen part keeps its own mode
    calls: list[bool] = []
    model.conv.register_forward_hook(lambda module, args, output: calls.append(output.requires_grad))
    modes = [module.training for module in model.modules()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, (3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()] == hooks
    assert calls
    assert not any(calls)
    assert all(parameter.grad is None for parameter in model.parameters())
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_modes_come_back_even_when_the_network_refuses_the_shape() -> None:
    model = Net().train()
    with pytest.raises(RuntimeError):
        count_flops(model, (1, 8, 8))
    assert all(module.training for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_latency_runs_the_asked_number_of_passes_at_the_asked_batch_size() -> None:
    model = Net()
    assert measure_latency(model, (3, 8, 8), batch_size=3, repeats=4, warmup=2) > 0
    assert model.batches == [(3, 3, 8, 8)] * 6
