"""Golden adapters of D-ADD: reference, distance, window, stream of accounts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillroom.defense.add import Reference, fit_reference, frechet_distance, window_score
from stillroom.defense.contracts import Queries
from stillroom.defense.dadd import ADD
from stillroom.defense.windows import MemoryWindows

SYSTEM = "d-add"


def reference(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    fitted = fit_reference(
        case.inputs["features"].numpy(),
        case.inputs["labels"].numpy(),
        options["num_classes"],
        shrinkage=options.get("shrinkage", 0.0),
    )
    return {"mean": torch.from_numpy(fitted.mean), "cov": torch.from_numpy(fitted.cov)}


def frechet(case: Any) -> dict[str, Tensor]:
    mu1, sigma1, mu2, sigma2 = (case.inputs[name].numpy() for name in ("mu1", "sigma1", "mu2", "sigma2"))
    return {"distance": torch.tensor(frechet_distance(mu1, sigma1, mu2, sigma2), dtype=torch.float64)}


def window(case: Any) -> dict[str, Tensor]:
    logits = case.inputs["logits"]
    fitted = Reference(case.inputs["mean"].numpy(), case.inputs["cov"].numpy())
    found = window_score(fitted, case.inputs["features"].numpy(), logits.argmax(1).numpy())
    detected = found.score > case.hyperparameters["threshold"]
    generator = torch.Generator().manual_seed(case.hyperparameters["poison_seed"])
    noise = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    return {
        "class_count": torch.from_numpy(found.counts),
        "class_distance": torch.from_numpy(found.distances),
        "score": torch.tensor(found.score, dtype=torch.float64),
        "detected": torch.tensor(detected, dtype=torch.uint8),
        "response": noise if detected else logits,
    }


def stream(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    detector = ADD(
        Reference(case.inputs["mean"].numpy(), case.inputs["cov"].numpy()),
        MemoryWindows(options["window"], dtype=np.float64),
        min_queries=options["min_queries"],
        policy=options["policy"],
    )
    scores = [
        detector.watch(Queries(str(account), np.zeros((1, 1, 1, 1), np.uint8), features[None], logits[None]))
        for account, features, logits in zip(
            case.inputs["account"].tolist(), case.inputs["features"].numpy(), case.inputs["logits"].numpy(), strict=True
        )
    ]
    score = torch.from_numpy(np.concatenate(scores))
    return {"score": score, "detected": (score > options["threshold"]).to(torch.uint8)}


ADAPTERS = {
    "fit_reference": reference,
    "frechet_distance": frechet,
    "window_score": window,
    "account_stream": stream,
}
