"""Golden adapters of the methods that match feature maps, and of SRRL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.distillation.offline._align import pool_larger, pool_to
from stillroom.distillation.offline.at import at_loss
from stillroom.distillation.offline.dskd import dskd_loss
from stillroom.distillation.offline.fitnet import FitNetRegressor, fitnet_loss
from stillroom.distillation.offline.reviewkd import ReviewKDLoss, hcl_loss
from stillroom.distillation.offline.semckd import SemCKDLoss, semckd_loss
from stillroom.distillation.offline.simkd import simkd_loss
from stillroom.distillation.offline.srrl import SRRLConnector, srrl_loss
from stillroom.distillation.offline.vid import VIDLoss
from stillroom.losses import kd_loss
from stillroom.models.composed import Projector

SYSTEM = "offline-kd"


def numbered(case: Any, prefix: str) -> list[Tensor]:
    """The inputs ``prefix.0``, ``prefix.1``, ... as leaves."""
    values = []
    while (name := f"{prefix}.{len(values)}") in case.inputs:
        values.append(case.inputs[name].requires_grad_())
    return values


def parameters(case: Any, prefix: str = "") -> dict[str, Tensor]:
    """The inputs under ``param.``, without that and ``prefix``."""
    start = f"param.{prefix}"
    return {name.removeprefix(start): value for name, value in case.inputs.items() if name.startswith(start)}


def fill(module: nn.Module, case: Any, prefix: str = "") -> None:
    """Load the parameters under ``prefix``; only BN's batch counters may be missing."""
    own = module.state_dict()
    given = {name: value for name, value in parameters(case, prefix).items() if name in own}
    missing = set(own) - set(given)
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    module.to(next(iter(given.values())).dtype)
    module.load_state_dict(given, strict=False)


def gradients(names: Iterable[str], values: Iterable[Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in zip(names, values, strict=True):
        assert value.grad is not None, name
        found[f"grad.{name}"] = value.grad
    return found


def series(prefix: str, values: list[Tensor]) -> dict[str, Tensor]:
    return gradients([f"{prefix}.{i}" for i in range(len(values))], values)


def simkd(case: Any) -> dict[str, Tensor]:
    student, teacher = case.inputs["feat_student"].requires_grad_(), case.inputs["feat_teacher"]
    projector = Projector(student.shape[1], teacher.shape[1], factor=case.hyperparameters["factor"])
    fill(projector, case)
    projector.train(case.hyperparameters["training"])
    pooled, target = pool_larger(student, teacher)
    projected = projector(pooled)
    loss = simkd_loss(projected, teacher)
    loss.backward()
    weights = parameters(case, "classifier.")
    after = {f"after.{name}": value for name, value in projector.state_dict().items() if ".running_" in name}
    return {
        "feat_student_projected": projected,
        "feat_teacher_aligned": target,
        "logits": F.linear(projected.mean((2, 3)), weights["weight"], weights["bias"]),
        "loss": loss,
        **gradients(
            ["feat_student", "param.conv1.weight", "param.bn3.weight"],
            [student, projector.conv1.weight, projector.bn3.weight],
        ),
        **after,
    }


def semckd(case: Any) -> dict[str, Tensor]:
    student, teacher = numbered(case, "feat_student"), numbered(case, "feat_teacher")
    options = case.hyperparameters
    criterion = SemCKDLoss(
        [x.shape[1] for x in student],
        [y.shape[1] for y in teacher],
        options["batch_size"],
        soft=options["soft"],
        embed_factor=options["embed_factor"],
    )
    for i in range(len(student)):
        fill(criterion.query[i], case, f"query.{i}.")
        for j in range(len(teacher)):
            fill(criterion.regressor[i * len(teacher) + j], case, f"regressor.{i}.{j}.")
    for j in range(len(teacher)):
        fill(criterion.key[j], case, f"key.{j}.")
    criterion.train(options["training"])
    attention, distance = criterion.attention(student, teacher), criterion.distance(student, teacher)
    loss = semckd_loss(attention, distance)
    loss.backward()
    assert all(y.grad is None for y in teacher)
    return {
        "attention": attention,
        "pair_loss": distance,
        "loss": loss,
        **series("feat_student", student),
        **gradients(
            ["param.query.0.fc1.weight", "param.key.0.fc1.weight"],
            [criterion.query[0].fc1.weight, criterion.key[0].fc1.weight],
        ),
    }


def dskd(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    student = case.inputs["logits_student"].requires_grad_()
    aux_logits, aux_maps = numbered(case, "aux_logits"), numbered(case, "aux_feat")
    terms = dskd_loss(
        aux_logits,
        aux_maps,
        case.inputs["logits_teacher"],
        case.inputs["feat_teacher"],
        gamma=options["gamma"],
        allocation=options["allocation"],
        temperature=options["temperature"],
    )
    kd = kd_loss(student, case.inputs["logits_teacher"], temperature=options["temperature"])
    loss = F.cross_entropy(student, case.inputs["labels"]) + options["alpha"] * kd + options["beta"] * terms.loss
    loss.backward()
    return {
        "layer_kd": terms.kd,
        "layer_feat": terms.feature,
        "layer_weight": terms.weight,
        "loss_shallow": terms.loss,
        "loss": loss,
        **gradients(["logits_student"], [student]),
        **series("aux_logits", aux_logits),
        **series("aux_feat", aux_maps),
    }


def fitnet(case: Any) -> dict[str, Tensor]:
    student, teacher = case.inputs["feat_student"].requires_grad_(), case.inputs["feat_teacher"]
    regressor = FitNetRegressor(student.shape[1], teacher.shape[1], student.shape[-1], teacher.shape[-1])
    fill(regressor, case)
    regressor.train(case.hyperparameters["training"])
    regressed = regressor(student)
    loss = fitnet_loss(regressed, teacher)
    loss.backward()
    return {
        "feat_student_regressed": regressed,
        "feat_teacher_aligned": pool_to(teacher, regressed.shape[-1]),
        "loss": loss,
        **gradients(["feat_student"], [student]),
    }


def attention_transfer(case: Any) -> dict[str, Tensor]:
    student, teacher = numbered(case, "feat_student"), numbered(case, "feat_teacher")
    pairs = zip(student, teacher, strict=True)
    layers = torch.stack([at_loss(x, y, p=case.hyperparameters["p"]) for x, y in pairs])
    layers.sum().backward()
    return {"layer_loss": layers, "loss": layers.sum(), **series("feat_student", student)}


def vid(case: Any) -> dict[str, Tensor]:
    student, teacher = case.inputs["feat_student"].requires_grad_(), case.inputs["feat_teacher"]
    options = case.hyperparameters
    criterion = VIDLoss(student.shape[1], teacher.shape[1], init_pred_var=options["init_pred_var"], eps=options["eps"])
    start = criterion.log_scale.detach()[:1].clone()
    fill(criterion, case)
    loss = criterion(student, teacher)
    loss.backward()
    return {
        "init_log_scale": start,
        "loss": loss,
        **gradients(["feat_student", "param.log_scale"], [student, criterion.log_scale]),
    }


def srrl(case: Any) -> dict[str, Tensor]:
    student, teacher = case.inputs["feat_student"].requires_grad_(), case.inputs["feat_teacher"]
    case.inputs["param.linear.weight"] = case.inputs["param.conv.weight"].flatten(1)
    connector = SRRLConnector(student.shape[1], teacher.shape[1])
    fill(connector, case)
    connector.train(case.hyperparameters["training"])
    connected = connector(student)
    weights = parameters(case, "classifier.")
    logits = F.linear(connected, weights["weight"], weights["bias"])
    feature, regression = srrl_loss(connected, teacher, logits, case.inputs["logits_teacher"])
    (feature + regression).backward()
    return {
        "feat_student_projected": connected,
        "logits": logits,
        "loss_feature": feature,
        "loss_regression": regression,
        "loss": feature + regression,
        **gradients(["feat_student"], [student]),
    }


def reviewkd_hcl(case: Any) -> dict[str, Tensor]:
    student, teacher = numbered(case, "feat_student"), numbered(case, "feat_teacher")
    loss = hcl_loss(student, teacher)
    loss.backward()
    return {"loss": loss, **series("feat_student", student)}


def reviewkd(case: Any) -> dict[str, Tensor]:
    student, teacher = numbered(case, "feat_student"), numbered(case, "feat_teacher")
    pooled = case.inputs["pooled_student"].requires_grad_()
    student_levels, teacher_levels = [*student, pooled], [*teacher, case.inputs["pooled_teacher"]]
    criterion = ReviewKDLoss(
        [x.shape[1] for x in student_levels],
        [y.shape[1] for y in teacher_levels],
        mid_channels=case.hyperparameters["mid_channels"],
    )
    for level, fusion in enumerate(criterion.fusions):
        fill(fusion, case, f"abf.{level}.")
    criterion.train(case.hyperparameters["training"])
    loss = criterion(student_levels, teacher_levels)
    loss.backward()
    return {"loss": loss, **series("feat_student", student), **gradients(["pooled_student"], [pooled])}


ADAPTERS = {
    "simkd": simkd,
    "semckd": semckd,
    "dskd": dskd,
    "fitnet": fitnet,
    "attention_transfer": attention_transfer,
    "vid": vid,
    "srrl": srrl,
    "reviewkd_hcl": reviewkd_hcl,
    "reviewkd": reviewkd,
}
