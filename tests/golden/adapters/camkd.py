"""Golden adapters of CA-MKD and the baselines AVER, EBKD, AEKD and FitNet-MKD."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillroom.distillation.multi_teacher._method import DryRun, ManyTeachers
from stillroom.distillation.multi_teacher.aekd import AEKD
from stillroom.distillation.multi_teacher.aver import AVER
from stillroom.distillation.multi_teacher.camkd import CAMKD
from stillroom.distillation.multi_teacher.ebkd import EBKD
from stillroom.distillation.multi_teacher.fitnet_mkd import FitNetMKD
from stillroom.distillation.multi_teacher.weights import least_norm_weights
from stillroom.models.signals import Signals

SYSTEM = "camkd"


def numbered(case: Any, prefix: str) -> list[Tensor]:
    values: list[Tensor] = []
    while (name := f"{prefix}.{len(values)}") in case.inputs:
        values.append(case.inputs[name])
    return values


def fill(module: nn.Module, case: Any, prefix: str) -> None:
    """Load the parameters under ``prefix``; only the running statistics may be missing."""
    given = {
        name.removeprefix(prefix): value
        for name, value in case.inputs.items()
        if name.startswith(prefix) and name.removeprefix(prefix) in module.state_dict()
    }
    missing = set(module.state_dict()) - set(given)
    assert all(name.rsplit(".")[-1] in ("running_mean", "running_var", "num_batches_tracked") for name in missing)
    module.double().load_state_dict(given, strict=False)


def options(case: Any, *names: str) -> dict[str, float]:
    return {name: case.hyperparameters[name] for name in ("temperature", "gamma", "alpha", *names)}


def on_logits(method: ManyTeachers, case: Any, *, shared: bool = False) -> dict[str, Tensor]:
    """Run a method that reads logits only; ``shared`` weights are the same for all samples."""
    student = case.inputs["student_logits"].requires_grad_()
    teachers, target = case.inputs["teacher_logits"], case.inputs["labels"]
    parts = method(Signals(student), [Signals(logits) for logits in teachers], target)
    parts["loss"].backward()
    weights = method.weigh(student, teachers, target)  # [B, K]
    if shared:
        assert bool((weights == weights[0]).all())
    assert student.grad is not None
    return {
        "total_loss": parts["loss"],
        "loss_kd": parts["kd"],
        "weights": weights[0] if shared else weights.T,
        "grad.student_logits": student.grad,
    }


def aver(case: Any) -> dict[str, Tensor]:
    return on_logits(AVER(**options(case)), case, shared=True)


def ebkd(case: Any) -> dict[str, Tensor]:
    return on_logits(EBKD(**options(case)), case)


def aekd(case: Any) -> dict[str, Tensor]:
    tolerance, normalize = case.hyperparameters["tolerance_C"], case.hyperparameters["normalize"]
    return on_logits(AEKD(**options(case), tolerance=tolerance, normalize=normalize), case, shared=True)


def aekd_weights(case: Any) -> dict[str, Tensor]:
    mean = case.inputs["gradients"].mean(1)
    hyper = case.hyperparameters
    weights = least_norm_weights(mean, tolerance=hyper["tolerance_C"], normalize=hyper["normalize"])
    return {"batch_mean": mean, "weights": weights}


def camkd_logits(case: Any) -> dict[str, Tensor]:
    method = CAMKD(**options(case))
    method.start_epoch(1)  # without the feature term
    return on_logits(method, case)


def camkd_step(case: Any) -> dict[str, Tensor]:
    logits = case.inputs["student_logits"].requires_grad_()
    feature_map = case.inputs["student_feature"].requires_grad_()
    target = case.inputs["labels"]
    maps = numbered(case, "teacher_feature")
    heads = []
    for k, teacher in enumerate(maps):
        linear = nn.Linear(teacher.shape[1], logits.shape[1])
        fill(linear, case, f"param.teacher_fc.{k}.")
        heads.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).requires_grad_(False))
    student = Signals(logits, stages=(feature_map,))
    answers = zip(numbered(case, "teacher_logits"), maps, strict=True)
    teachers = [Signals(answer, stages=(teacher,)) for answer, teacher in answers]
    method = CAMKD(**options(case, "beta"))
    method.build(DryRun(student=student, teachers=teachers, heads=heads, batch_size=len(target)))
    fill(method.features, case, "param.")
    method.start_epoch(case.hyperparameters["epoch"])
    total = method(student, teachers, target)["loss"]
    total.backward()
    projected = method.features(feature_map, maps, target)
    names = {"student_logits": logits, "student_feature": feature_map}
    names |= dict(method.features.named_parameters())
    return {
        "total_loss": total,
        "feature_loss": projected.loss,
        "feature_weights": projected.weights.T,
        **{f"transformed.{k}": value for k, value in enumerate(projected.aligned)},
        **{f"transformed_logits.{k}": value for k, value in enumerate(projected.logits)},
        **{f"grad.{name}": value.grad for name, value in names.items() if value.grad is not None},
    }


def fitnet_mkd(case: Any) -> dict[str, Tensor]:
    student, maps = case.inputs["student_feature"].requires_grad_(), numbered(case, "teacher_feature")
    logits = torch.zeros(len(student), 2, dtype=torch.float64)
    method = FitNetMKD()
    signals = Signals(logits, stages=(student, student))
    teachers = [Signals(logits, stages=(teacher, teacher)) for teacher in maps]
    method.build(DryRun(student=signals, teachers=teachers, heads=[None] * len(maps), batch_size=len(student)))
    fill(method.hint, case, "param.")
    errors = method.hint(student, maps)
    errors.mean().backward()
    assert student.grad is not None
    return {
        "loss": errors.mean(),
        "per_teacher": errors.mean(0),
        "grad.student_feature": student.grad,
        **{f"regressed.{k}": value for k, value in enumerate(method.hint.regress(student))},
    }


ADAPTERS = {
    "avermkd_loss": aver,
    "ebkd_loss": ebkd,
    "aekd_loss": aekd,
    "aekd_weights": aekd_weights,
    "camkd_logit_loss": camkd_logits,
    "camkd_step": camkd_step,
    "fitnet_mkd_loss": fitnet_mkd,
}
