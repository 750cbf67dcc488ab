"""Golden adapters of KT: blocks, layout, translator, loss, augmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.distillation.translation.augment import add_noise, mask_entries
from stillroom.distillation.translation.blocks import Begin, Large, Last, Small
from stillroom.distillation.translation.kt import translation_loss
from stillroom.distillation.translation.layout import from_tokens, to_tokens
from stillroom.distillation.translation.translator import Translator

SYSTEM = "kt"


def load(module: nn.Module, case: Any, prefix: str) -> nn.Module:
    """Fill a module with the case's parameters, in their precision."""
    found = {name.removeprefix(prefix): value for name, value in case.inputs.items() if name.startswith(prefix)}
    module.to(next(iter(found.values())).dtype).load_state_dict(found, strict=False)
    absent = set(module.state_dict()) - set(found)
    assert {name.rpartition(".")[2] for name in absent} <= {"num_batches_tracked"}, absent
    assert set(found) <= set(module.state_dict())
    return module


def parameter_layout(case: Any) -> dict[str, Tensor]:
    planes = case.hyperparameters["planes"]
    tokens = to_tokens(case.inputs["conv1_weight"], case.inputs["conv2_weight"])
    conv1, conv2 = from_tokens(tokens[:, : planes**2])
    return {"tokens": tokens, "unflatten_conv1": conv1, "unflatten_conv2": conv2}


def translate_forward(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    translator = load(
        Translator(
            layers=options["num_layers"],
            channels=options["c_dim"],
            hidden_tokens=options["hidden_s_dim"],
            hidden_channels=options["hidden_c_dim"],
            dropout=options["dropout"],
            tokens=options["s_dim"],
        ),
        case,
        "param.translator.",
    ).eval()
    large = {name: case.inputs[name].clone().requires_grad_() for name in ("conv1_weight", "conv2_weight")}
    conv1, conv2 = from_tokens(translator(to_tokens(large["conv1_weight"], large["conv2_weight"])))
    outputs = {"conv1": conv1, "conv2": conv2}
    if "target_conv1" in case.inputs:
        loss = translation_loss((conv1, conv2), (case.inputs["target_conv1"], case.inputs["target_conv2"]))
        loss.backward()
        outputs |= {"loss": loss, **{f"grad.{name}": value.grad for name, value in large.items()}}
    return outputs


def loss(case: Any) -> dict[str, Tensor]:
    output = {name: case.inputs[name].clone().requires_grad_() for name in ("output_conv1", "output_conv2")}
    value = translation_loss(
        (output["output_conv1"], output["output_conv2"]), (case.inputs["target_conv1"], case.inputs["target_conv2"])
    )
    value.backward()
    return {"loss": value, **{f"grad.{name}": tensor.grad for name, tensor in output.items()}}


def random_mask(case: Any) -> dict[str, Tensor]:
    prob = case.hyperparameters["prob"]
    return {f"conv{i}": mask_entries(case.inputs[f"conv{i}"], case.inputs[f"uniform{i}"], prob=prob) for i in (1, 2)}


def random_noise(case: Any) -> dict[str, Tensor]:
    noise = case.hyperparameters["noise"]
    return {f"conv{i}": add_noise(case.inputs[f"conv{i}"], case.inputs[f"normal{i}"], noise=noise) for i in (1, 2)}


def block_forward(case: Any) -> dict[str, Tensor]:
    weights = {name.removeprefix("param.block."): value for name, value in case.inputs.items()}
    match case.hyperparameters["kind"]:
        case "begin":
            planes, channels = weights["conv.weight"].shape[:2]
            block: nn.Module = Begin(channels, planes)
        case "large":
            block = Large(weights["conv1.weight"].shape[1])
        case "small":
            block = Small(weights["conv1.weight"].shape[1])
        case _:
            classes, features = weights["fc.weight"].shape
            outputs, planes = weights["downsample.weight"].shape[:2]
            block = Last(features // outputs, classes, planes)
    block = load(block, case, "param.block.").train(case.hyperparameters["training"])
    with torch.no_grad():
        return {"y": block(case.inputs["x"])}


ADAPTERS = {
    "parameter_layout": parameter_layout,
    "translate_forward": translate_forward,
    "translation_loss": loss,
    "random_mask": random_mask,
    "random_noise": random_noise,
    "block_forward": block_forward,
}
