"""Golden cases of the losses on logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.distillation.offline.correction import revision_loss, self_correction_loss, swap_teacher
from stillroom.distillation.offline.dkd import DKDLoss, dkd_terms
from stillroom.distillation.offline.lskd import lskd_loss
from stillroom.distillation.offline.note import (
    confidence_penalty_loss,
    entropy,
    label_smoothing_loss,
    logits_matching_loss,
    mixed_target_loss,
)
from stillroom.distillation.offline.rld import RLDLoss, misleading_classes, rld_terms
from stillroom.losses.kl import kd_loss, standardise_logits

SYSTEM = "offline-kd"


def logits(case: Any) -> tuple[Tensor, Tensor]:
    """The student's logits as a leaf, and the teacher's."""
    return case.inputs["logits_student"].clone().requires_grad_(), case.inputs["logits_teacher"]


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(loss, student)[0]


def kd_kl(case: Any) -> dict[str, Tensor]:
    student, teacher = logits(case)
    loss_function = lskd_loss if case.hyperparameters["standardise"] else kd_loss
    loss = loss_function(student, teacher, temperature=case.hyperparameters["temperature"])
    return {"loss": loss, "grad.logits_student": gradient(loss, student)}


def logits_matching(case: Any) -> dict[str, Tensor]:
    student, teacher = logits(case)
    loss = logits_matching_loss(student, teacher)
    high = kd_loss(student, teacher, temperature=case.hyperparameters["high_temperature"])
    return {"loss": loss, "grad.logits_student": gradient(loss, student), "kd_loss_high_T": high}


def output_regularisation(case: Any) -> dict[str, Tensor]:
    student, teacher = logits(case)
    target, about = case.inputs["labels"], case.hyperparameters
    alpha = about["alpha"]
    cross_entropy = F.cross_entropy(student, target)
    return {
        "cross_entropy": cross_entropy,
        "entropy": entropy(student),
        "label_smoothing": label_smoothing_loss(student, target, smoothing=about["epsilon"]),
        "confidence_penalty": confidence_penalty_loss(student, target, weight=about["entropy_weight"]),
        "kd_T1": (1 - alpha) * cross_entropy + alpha * kd_loss(student, teacher, temperature=1.0),
        "mixed_target_ce": mixed_target_loss(student, teacher, target, alpha=alpha),
        "teacher_entropy": entropy(teacher),
    }


def dkd(case: Any) -> dict[str, Tensor]:
    student, teacher = logits(case)
    target, about = case.inputs["labels"], case.hyperparameters
    options = {name: about[name] for name in ("temperature", "standardise")}
    tckd, nckd = dkd_terms(student, teacher, target, **options)
    loss = DKDLoss(alpha=about["alpha"], beta=about["beta"], **options)(student, teacher, target)
    return {"loss_tckd": tckd, "loss_nckd": nckd, "loss": loss, "grad.logits_student": gradient(loss, student)}


def rld(case: Any) -> dict[str, Tensor]:
    student, teacher = logits(case)
    target, about = case.inputs["labels"], case.hyperparameters
    options = {name: about[name] for name in ("temperature", "alpha_temperature", "standardise")}
    scd, mcd = rld_terms(student, teacher, target, **options)
    loss = RLDLoss(alpha=about["alpha"], beta=about["beta"], **options)(student, teacher, target)
    seen = standardise_logits(teacher) if about["standardise"] else teacher
    return {
        "mask": misleading_classes(seen, target).to(torch.uint8),
        "loss_scd": scd,
        "loss_mcd": mcd,
        "loss": loss,
        "grad.logits_student": gradient(loss, student),
    }


def teacher_correction(case: Any) -> dict[str, Tensor]:
    student, teacher = logits(case)
    target, about = case.inputs["labels"], case.hyperparameters
    swapped = swap_teacher(teacher, target)
    swap = kd_loss(student, swapped, temperature=about["temperature"])
    rc = self_correction_loss(student, target, temperature=about["temperature"])
    options = {name: about[name] for name in ("lambda1", "lambda2", "eta")}
    revision = revision_loss(student, teacher, target, **options)
    return {
        "swapped_teacher": swapped,
        "loss_swap": swap,
        "grad_swap.logits_student": gradient(swap, student),
        "loss_rc": rc,
        "grad_rc.logits_student": gradient(rc, student),
        "loss_revision": revision,
        "grad_revision.logits_student": gradient(revision, student),
    }


ADAPTERS = {
    "kd_kl": kd_kl,
    "logits_matching": logits_matching,
    "output_regularisation": output_regularisation,
    "dkd": dkd,
    "rld": rld,
    "teacher_correction": teacher_correction,
}
