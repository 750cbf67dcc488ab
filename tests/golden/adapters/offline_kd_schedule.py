"""Golden adapter of the learning-rate and warm-up schedules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stillroom.training.recipe import learning_rate, warmup_weight

SYSTEM = "offline-kd"


def schedule(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    epochs = case.inputs["epochs"].tolist()
    rates = [
        learning_rate(epoch, lr=options["lr"], milestones=options["milestones"], decay=options["decay"])
        for epoch in epochs
    ]
    weights = [warmup_weight(epoch, options["warmup_epochs"]) for epoch in epochs]
    return {
        "lr": torch.tensor(rates, dtype=torch.float64),
        "warmup_weight": torch.tensor(weights, dtype=torch.float64),
    }


ADAPTERS = {"schedule": schedule}
