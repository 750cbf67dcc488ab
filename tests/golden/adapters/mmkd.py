"""Golden adapters of MMKD: weight networks, matching losses, the bilevel step and the hard buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from stillroom.data.batch import Batch
from stillroom.distillation.multi_teacher.bilevel import look_ahead
from stillroom.distillation.multi_teacher.hard_buffer import HardBuffer
from stillroom.distillation.multi_teacher.mmkd import MMKD, FeatureWeights, LogitWeights, MatchFeatures, Matching
from stillroom.distillation.multi_teacher.weights import combine, weighted_kl
from stillroom.models.signals import Signals

SYSTEM = "mmkd"
OURS = {"layer.": "hidden.", "all_act.": "output."}


def numbered(case: Any, prefix: str) -> list[Tensor]:
    values: list[Tensor] = []
    while (name := f"{prefix}.{len(values)}") in case.inputs:
        values.append(case.inputs[name])
    return values


def ours(name: str) -> str:
    """Our name of a parameter of the golden files."""
    for theirs, own in OURS.items():
        name = name.replace(theirs, own)
    return name


def theirs(name: str) -> str:
    for their, own in OURS.items():
        name = name.replace(own, their)
    return name


def named(case: Any, prefix: str) -> dict[str, Tensor]:
    """The inputs under ``prefix`` by our names."""
    return {ours(name.removeprefix(prefix)): v for name, v in case.inputs.items() if name.startswith(prefix)}


def fill(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    found = module.double().load_state_dict(dict(given), strict=False)
    assert not found.unexpected_keys
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert all(name.rsplit(".")[-1] in statistics for name in found.missing_keys), found.missing_keys


def pulled_back(case: Any, net: nn.Module, *inputs: Any) -> dict[str, Tensor]:
    fill(net, named(case, "param.net."))
    weights = net(*inputs)
    weights.backward(case.inputs["cotangent"])
    gradients = {f"grad.net.{theirs(name)}": value.grad for name, value in net.named_parameters()}
    return {"weights": weights, **gradients}


def logit_weight_net(case: Any) -> dict[str, Tensor]:
    hyper = case.hyperparameters
    net = LogitWeights(hyper["num_classes"], hyper["num_teachers"], hyper["factor"])
    return pulled_back(case, net, case.inputs["student_logits"], case.inputs["teacher_logits"])


def feature_weight_net(case: Any) -> dict[str, Tensor]:
    hyper = case.hyperparameters
    net = FeatureWeights(hyper["batch_size"], hyper["num_teachers"], hyper["factor"])
    return pulled_back(case, net, case.inputs["student_feature"], numbered(case, "teacher_feature"))


def match_logits(case: Any) -> dict[str, Tensor]:
    student, weights = (case.inputs[name].requires_grad_() for name in ("student_logits", "weights"))
    temperature = case.hyperparameters["temperature"]
    loss = weighted_kl(student, case.inputs["teacher_logits"], weights, temperature=temperature)
    loss.backward()
    return {"loss": loss, "grad.student_logits": student.grad, "grad.weights": weights.grad}


def match_feature(case: Any) -> dict[str, Tensor]:
    student, weights = (case.inputs[name].requires_grad_() for name in ("student_feature", "weights"))
    teachers = numbered(case, "teacher_feature")
    match = MatchFeatures(student.shape[1], [teacher.shape[1] for teacher in teachers])
    fill(match, named(case, "param.match."))
    loss = combine(match(student, teachers), weights, "sum")
    loss.backward()
    gradients = {f"grad.match.{name}": value.grad for name, value in match.named_parameters()}
    return {"loss": loss, "grad.student_feature": student.grad, "grad.weights": weights.grad, **gradients}


def sgd(hyper: Mapping[str, Any]) -> dict[str, Any]:
    return {name: hyper[name] for name in ("lr", "momentum", "weight_decay", "inner_steps")}


def meta_gradient_linear(case: Any) -> dict[str, Tensor]:
    given = case.inputs
    start = given["student_weight"].clone()

    def inner(p: Mapping[str, Tensor], phi: Mapping[str, Tensor]) -> Tensor:
        errors = 0.5 * ((given["x"] @ p["w"] - given["teacher_targets"]) ** 2).mean(1)
        return (phi["phi"].softmax(0) * errors).sum()

    def outer(p: Mapping[str, Tensor]) -> Tensor:
        return 0.5 * ((given["x_outer"] @ p["w"] - given["y_outer"]) ** 2).mean()

    buffers = {"w": given["momentum_buffer"]} if "momentum_buffer" in given else {}
    ahead = look_ahead(inner, outer, {"w": start}, buffers, {"phi": given["phi"]}, **sgd(case.hyperparameters))
    after = ahead.parameters["w"]
    return {
        "student_weight_after_steps": after,
        "outer_loss": ahead.outer_after,
        "grad.phi": ahead.gradients["phi"],
        "student_weight_final": start if case.hyperparameters.get("rollback", True) else after,
    }


class TinyStudent(nn.Module):
    def __init__(self, inputs: int, hidden: int, channels: int, classes: int) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(inputs, hidden, bias=False), nn.Linear(channels, classes)
        self.size = round((hidden // channels) ** 0.5)

    def forward(self, x: Tensor) -> Signals:
        feature_map = torch.tanh(self.l1(x)).view(len(x), -1, self.size, self.size)
        return Signals(self.l2(feature_map.mean((2, 3))), stages=(feature_map,))


def meta_step(case: Any) -> dict[str, Tensor]:
    hyper, x, target = case.hyperparameters, case.inputs["x"], case.inputs["labels"]
    logits, maps = numbered(case, "teacher_logits"), numbered(case, "teacher_feature")
    teachers = [Signals(z, stages=(f,)) for z, f in zip(logits, maps, strict=True)]
    student_weights = named(case, "param.student.")
    classes, channels = student_weights["l2.weight"].shape
    hidden, inputs = student_weights["l1.weight"].shape
    student = TinyStudent(inputs, hidden, channels, classes)
    fill(student, student_weights)
    method = MMKD(temperature=hyper["temperature"], alpha=hyper["alpha"], beta=hyper["beta"])
    method.matching = Matching(student(x), teachers, temperature=hyper["temperature"])
    method.double()
    fill(method.matching, {n: v for n, v in named(case, "param.").items() if not n.startswith("student.")})
    inner_loss = method(student(x), teachers, target)["loss"]

    network = nn.ModuleDict({"student": student, "matching": method.matching})
    weights = {n: p for n, p in method.matching.named_parameters() if n.split(".")[0] != "match"}
    theta = {n: p for n, p in network.named_parameters() if n.removeprefix("matching.") not in weights}

    def part(values: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
        return {n.removeprefix(f"{name}."): v for n, v in values.items() if n.startswith(f"{name}.")}

    def inner(p: Mapping[str, Tensor], phi: Mapping[str, Tensor]) -> Tensor:
        says = functional_call(student, part(p, "student"), (x,))
        matched = functional_call(method.matching, {**part(p, "matching"), **phi}, (says, teachers))
        return method.matching_loss(matched)

    def outer(p: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(student, part(p, "student"), (x,)).logits, target)

    momentum = {n if n.startswith("student.") else f"matching.{n}": v for n, v in named(case, "momentum.").items()}
    ahead = look_ahead(inner, outer, theta, momentum, weights, **sgd(hyper))
    adam = torch.optim.Adam(weights.values(), lr=hyper["meta_lr"], weight_decay=hyper["meta_weight_decay"])
    for name, value in weights.items():
        value.grad = ahead.gradients[name]
    adam.step()
    return {
        "inner_loss": inner_loss,
        "matching_loss": ahead.inner_losses[0],
        "outer_loss_start": outer(theta),
        "outer_loss_end": ahead.outer_after,
        **{f"grad.{theirs(name)}": value for name, value in ahead.gradients.items()},
        **{f"updated.{theirs(name)}": value for name, value in weights.items()},
        **{f"final.{name.removeprefix('matching.')}": value for name, value in theta.items()},
    }


def hard_buffer(case: Any) -> dict[str, Tensor]:
    hyper, data, labels = case.hyperparameters, case.inputs["data"], case.inputs["labels"]
    batches = [Batch(x, y, torch.arange(len(y))) for x, y in zip(data, labels, strict=True)]
    buffer = HardBuffer(hyper["buffer_size"], batches[0])
    full = []
    for batch in batches:
        if not buffer.full:
            buffer.update(batch, torch.zeros(len(batch.target), dtype=torch.bool))
        full.append(buffer.full)
    found = {
        "full": torch.tensor(full),
        "buffer_data": buffer.images[: buffer.filled].clone(),
        "buffer_labels": buffer.target[: buffer.filled].clone(),
    }
    if "slots" in case.inputs:
        hard, hard_labels = case.inputs["hard_data"], case.inputs["hard_labels"]
        every = torch.ones(len(hard), dtype=torch.bool)
        buffer.replace(Batch(hard, hard_labels, torch.arange(len(hard))), every, case.inputs["slots"])
        found |= {"after_data": buffer.images, "after_labels": buffer.target}
    return found


ADAPTERS = {
    "logit_weight_net": logit_weight_net,
    "feature_weight_net": feature_weight_net,
    "match_logits": match_logits,
    "match_feature": match_feature,
    "meta_gradient_linear": meta_gradient_linear,
    "meta_step": meta_step,
    "hard_buffer": hard_buffer,
}
