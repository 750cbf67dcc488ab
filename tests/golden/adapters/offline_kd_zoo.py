"""Golden adapter of the CIFAR model zoo: structure checked through weights filled by an index rule."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.models.zoo import create

SYSTEM = "offline-kd"


def uniform(shape: torch.Size, phi: float) -> Tensor:
    """Pseudo-random numbers in [-1/2, 1/2) as a function of the index; ``phi`` shifts the phase."""
    phase = torch.full(shape, phi, dtype=torch.float64)
    for axis, frequency in zip(range(len(shape)), (12.9898, 78.233, 37.719, 4.581), strict=False):
        index = torch.arange(shape[axis], dtype=torch.float64)
        phase += frequency * index.reshape(-1, *[1] * (len(shape) - axis - 1))
    value = 43758.5453 * torch.sin(phase)
    return value - torch.floor(value) - 0.5


@torch.no_grad()
def fill(net: nn.Module, phi: float) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(uniform(module.weight.shape, phi) * math.sqrt(24 / module.weight[0].numel()))
            if module.bias is not None:
                module.bias.copy_(0.05 * torch.sin(torch.arange(len(module.bias), dtype=torch.float64)))
        elif isinstance(module, nn.Linear):
            module.weight.copy_(uniform(module.weight.shape, phi) * math.sqrt(12 / module.in_features))
            module.bias.copy_(0.1 * torch.cos(torch.arange(len(module.bias), dtype=torch.float64)))
        elif isinstance(module, nn.BatchNorm2d):
            index = torch.arange(module.num_features, dtype=torch.float64)
            module.weight.copy_(0.8 + 0.1 * torch.sin(index + 0.5))
            module.bias.copy_(0.1 * torch.cos(index))
            module.running_mean.copy_(0.05 * torch.sin(2 * index + 1))
            module.running_var.copy_(1 + 0.2 * torch.sin(3 * index) ** 2)


@torch.no_grad()
def run(net: nn.Module, image: Tensor, paths: dict[str, str]) -> dict[str, Tensor]:
    """Return the logits and, for every named path, the tensor that passed there."""
    seen: dict[str, Tensor] = {}

    def record(name: str, wants_input: bool) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert name not in seen, f"{name} ran twice"
            seen[name] = inputs[0] if wants_input else output

        return hook

    handles = []
    for name, path in paths.items():
        module = net.get_submodule(path.removesuffix(":input"))
        handles.append(module.register_forward_hook(record(name, path.endswith(":input"))))
    seen["logits"] = net(image)
    for handle in handles:
        handle.remove()
    return seen


def stats(x: Tensor) -> Tensor:
    return torch.stack((x.mean(), x.std(), x.min(), x.max()))


def zoo(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    net = create(options["architecture"], num_classes=options["num_classes"]).double().eval()
    fill(net, options["phi"])
    taps = net.tap_paths()
    paths = {"pooled": f"{taps.classifier}:input"}
    paths |= {f"tap.{index}": path for index, path in enumerate((taps.stem, *taps.stages))}
    if taps.preact:  # the stem has no variant of its own
        paths |= {f"preact.{index}": path for index, path in enumerate((taps.stem, *taps.preact))}
    seen = run(net, case.inputs["image"].double(), paths)

    results = {"num_parameters": torch.tensor(sum(p.numel() for p in net.parameters())), "logits": seen.pop("logits")}
    for name, value in seen.items():
        results[f"{name}.stats"] = stats(value)
        results[f"{name}.head"] = value.flatten(1)[:, : 64 if name == "pooled" else 8]
        results[f"{name}.shape"] = torch.tensor(value.shape)
    return results


ADAPTERS = {"zoo": zoo}
