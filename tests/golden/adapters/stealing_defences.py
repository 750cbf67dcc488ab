"""Golden adapters of the defences that alter answers: reverse sigmoid, MAD, adaptive misinformation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.defense.adaptive_misinformation import (
    adaptive_misinformation,
    hellinger_distance,
    misinformation_loss,
    outlier_exposure_loss,
)
from stillroom.defense.contracts import softmax
from stillroom.defense.mad import mad
from stillroom.defense.reverse_sigmoid import reverse_sigmoid

SYSTEM = "stealing-defences"


def bent(case: Any) -> dict[str, Tensor]:
    return {"probs": torch.from_numpy(reverse_sigmoid(case.inputs["probs"].numpy(), **case.hyperparameters))}


def poisoned(case: Any) -> dict[str, Tensor]:
    probabilities = case.inputs["probs"].double().numpy()
    found = mad(case.inputs["jacobian"].double().numpy(), probabilities, **case.hyperparameters)
    return {
        "target": torch.from_numpy(found.target),
        "probs": torch.from_numpy(found.probabilities),
        "delta": torch.from_numpy(found.probabilities - probabilities),
        "objective": torch.tensor(found.objective),
    }


def gate(case: Any) -> dict[str, Tensor]:
    probabilities = case.inputs["probs"].numpy()
    wrong = softmax(case.inputs["misinformation_logits"].numpy())
    answered, alpha = adaptive_misinformation(probabilities, wrong, **case.hyperparameters)
    return {
        "probs": torch.from_numpy(answered),
        "alpha": torch.from_numpy(alpha),
        "hellinger": torch.from_numpy(hellinger_distance(probabilities, answered)),
        "ood": torch.from_numpy(alpha >= 0.5).to(torch.uint8),
    }


def losses(case: Any) -> dict[str, Tensor]:
    ood = case.inputs["ood_logits"].clone().requires_grad_()
    logits = case.inputs["misinformation_logits"].clone().requires_grad_()
    exposure, wrong = outlier_exposure_loss(ood), misinformation_loss(logits, case.inputs["labels"])
    (exposure + wrong).backward()
    assert ood.grad is not None
    assert logits.grad is not None
    return {
        "outlier_exposure": exposure,
        "misinformation": wrong,
        "grad.ood_logits": ood.grad,
        "grad.misinformation_logits": logits.grad,
    }


ADAPTERS = {
    "reverse_sigmoid": bent,
    "mad": poisoned,
    "adaptive_misinformation": gate,
    "adaptive_misinformation_losses": losses,
}
