"""Golden adapters of OAD and of the baselines in its code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from golden.graph_networks import PLAIN_FABRIC, edges_of, network_of, parameters_of
from stillroom.graphs.batch import NodeBatch
from stillroom.graphs.online.agreement import label_loss, mean_of_others_loss, prediction_kl, total
from stillroom.graphs.online.codistill import edge_codistill_loss, feature_codistill_loss
from stillroom.graphs.online.dml import dml_loss
from stillroom.graphs.online.kdcl import kdcl_loss
from stillroom.graphs.online.oad import OAD, Discriminator, adversarial_loss, discriminator_loss
from stillroom.graphs.propagation import symmetric_norm
from stillroom.graphs.structure import lsp_loss
from stillroom.graphs.task import GroupTask
from stillroom.training.recipe import Recipe, make_optimizer

SYSTEM = "oad"


def kd_loss(case: Any) -> dict[str, Tensor]:
    student = case.inputs["student"].clone().requires_grad_()
    temperature = case.hyperparameters["temperature"]
    loss = prediction_kl(student, case.inputs["teacher"], temperature=temperature, reduction="reference")
    return {"loss": loss, "grad.student": torch.autograd.grad(loss, student)[0]}


def group_loss(case: Any) -> dict[str, Tensor]:
    logits = case.inputs["logits"].clone().requires_grad_()
    each, target, about = list(logits), case.inputs["labels"], case.hyperparameters
    options: dict[str, Any] = {"temperature": about.get("temperature", 3.0), "reduction": "reference"}
    kind = about["kind"]
    if kind == "cross_entropy":
        loss = total([label_loss(own, target) for own in each])
    elif kind == "mean_of_others":
        loss = mean_of_others_loss(each, **options)
    elif kind == "dml":
        loss = dml_loss(each, detach=False, **options)
    else:
        loss = kdcl_loss(each, target, teacher=kind.removeprefix("kdcl_"), **options)
    return {"loss": loss, "grad.logits": torch.autograd.grad(loss, logits)[0]}


def _features(case: Any) -> list[Tensor]:
    count = case.hyperparameters["num_branches"]
    return [case.inputs[f"feat.{i}"].clone().requires_grad_() for i in range(count)]


def _with_gradients(loss: Tensor, features: list[Tensor]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(loss, features)
    return {f"grad.feat.{i}": gradient for i, gradient in enumerate(gradients)}


def feature_codistill(case: Any) -> dict[str, Tensor]:
    features, about = _features(case), case.hyperparameters
    loss = feature_codistill_loss(
        features, kind=about["kind"], temperature=about.get("temperature", 3.0), reduction="reference", detach=False
    )
    return {"loss": loss} | _with_gradients(loss, features)


def edge_distill(case: Any) -> dict[str, Tensor]:
    features = _features(case)
    loss = edge_codistill_loss(features, edges_of(case.inputs), edge_value=case.hyperparameters["edge_type"])
    return {"loss": loss} | _with_gradients(loss, features)


def lsp_reverse(case: Any) -> dict[str, Tensor]:
    student = case.inputs["student"].clone().requires_grad_()
    loss = lsp_loss(student, case.inputs["teacher"], edges_of(case.inputs), scale=case.hyperparameters["scale"])
    return {"loss": loss, "grad.student": torch.autograd.grad(loss, student)[0]}


def _parameters(discriminator: Discriminator) -> dict[str, Tensor]:
    """A discriminator's parameters under the files' names and in their layout."""
    names = ["f"] if len(discriminator.layers) == 1 else ["f1", "f2"]
    found: dict[str, Tensor] = {}
    for name, layer in zip(names, discriminator.layers, strict=True):
        found |= {f"{name}.weight": layer.lin.weight.t(), f"{name}.bias": layer.bias}
    return found


def _discriminator(inputs: Mapping[str, Tensor], prefix: str) -> Discriminator:
    one_layer = f"{prefix}f.weight" in inputs
    first = inputs[f"{prefix}f.weight" if one_layer else f"{prefix}f1.weight"]
    made = Discriminator(first.shape[0], None if one_layer else first.shape[1], final_activation="relu").double()
    _load(made, inputs, prefix)
    return made


def _load(discriminator: Discriminator, inputs: Mapping[str, Tensor], prefix: str) -> None:
    with torch.no_grad():
        for name, parameter in _parameters(discriminator).items():
            parameter.copy_(inputs[prefix + name])


def discriminator(case: Any) -> dict[str, Tensor]:
    made, edges = _discriminator(case.inputs, "param."), edges_of(case.inputs)
    x = case.inputs["x"].clone().requires_grad_()
    score = made(x, edges, symmetric_norm(edges, x.shape[0], x.dtype))[:, None]
    (score * case.inputs["cotangent"]).sum().backward()
    names = ["f"] if len(made.layers) == 1 else ["f1", "f2"]
    outputs = {"score": score, "grad.x": x.grad}
    for name, layer in zip(names, made.layers, strict=True):
        outputs[f"grad.param.{name}.weight"] = layer.lin.weight.grad.t()  # type: ignore[union-attr]
        outputs[f"grad.param.{name}.bias"] = layer.bias.grad  # type: ignore[union-attr]
    return outputs  # type: ignore[return-value]


def gan_cycle(case: Any) -> dict[str, Tensor]:
    features, edges, about = _features(case), edges_of(case.inputs), case.hyperparameters
    norm = symmetric_norm(edges, features[0].shape[0], features[0].dtype)
    made = [_discriminator(case.inputs, f"param.{i}.") for i in range(len(features))]
    optimizer = torch.optim.Adam([p for each in made for p in each.parameters()], lr=about["lr"])
    before = about["d_trade"] * discriminator_loss(made, features, edges, norm)
    before.backward()
    optimizer.step()
    loss = adversarial_loss(made, features, edges, norm)
    outputs = {"gan_loss": loss, "d_loss_total": before} | _with_gradients(loss, features)
    return outputs | {f"param.{i}.{name}": p for i, each in enumerate(made) for name, p in _parameters(each).items()}


def okd_step(case: Any) -> dict[str, Tensor]:
    about, inputs = case.hyperparameters, case.inputs
    width, count = inputs["x"].shape[1], about["num_branches"]
    branches = [network_of(about, inputs, f"param.branch{i}.", width, pool=False) for i in range(count)]
    two_layers = "param.disc0.f1.weight" in inputs
    method = OAD(
        kd_weight=about["kd_weight"],
        gan_weight=about["gan_weight"],
        d_weight=about["d_weight"],
        temperature=about["temperature"],
        reduction="reference",
        features="hidden" if about["arch"] == "GCN" else "activated",
        discriminator_width=inputs["param.disc0.f1.weight"].shape[1] if two_layers else None,
        final_activation="relu",
    )
    batch = NodeBatch(inputs["x"], edges_of(inputs), inputs["y"], inputs["train_mask"].nonzero()[:, 0])
    task = GroupTask(branches, method, batch, epochs=1).double().train()
    for i, each in enumerate(method.discriminators):
        _load(each, inputs, f"param.disc{i}.")  # type: ignore[arg-type]
    recipe = Recipe(epochs=1, optimizer="adam", lr=about["lr"], weight_decay=about["weight_decay"])
    optimizer = make_optimizer(recipe, task.parameters(), undecayed=list(method.adversaries()))
    task.start_epoch(1)
    parts = task.step(task, optimizer, batch, PLAIN_FABRIC, recipe)
    outputs = {
        "loss": parts["loss"],
        "cls_loss": parts["labels"],
        "kd_loss": parts["predictions"],
        "gan_loss": parts["adversarial"],
        "d_loss_total": parts["discriminators"],
    }
    outputs |= {f"param.branch{i}.{name}": p for i, b in enumerate(branches) for name, p in parameters_of(b).items()}
    for i, each in enumerate(method.discriminators):
        outputs |= {f"param.disc{i}.{name}": p for name, p in _parameters(each).items()}  # type: ignore[arg-type]
    return outputs


ADAPTERS = {
    "kd_loss_reference": kd_loss,
    "group_loss": group_loss,
    "feature_codistill": feature_codistill,
    "edge_distill": edge_distill,
    "lsp_reverse": lsp_reverse,
    "discriminator": discriminator,
    "gan_cycle": gan_cycle,
    "okd_step": okd_step,
}
