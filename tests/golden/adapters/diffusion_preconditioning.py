"""Golden adapters of the preconditioning of networks, of guidance and of the mixture's denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from golden.diffusion_case import denoiser_of
from stillroom.diffusion.denoisers.discrete_preconditioning import IDDPM, LDM, Discrete
from stillroom.diffusion.denoisers.guidance import ClassifierFreeGuidance
from stillroom.diffusion.denoisers.preconditioning import (
    CM,
    EDM,
    VE,
    VP,
    Flow,
    Preconditioned,
    Preconditioning,
    VContinuous,
    network_input,
)

SYSTEM = "diffusion-solvers"


def preconditioning_of(case: Any) -> Preconditioning:
    kind, table = case.hyperparameters["kind"], case.inputs.get("alphas_cumprod")
    if kind.startswith("ldm"):
        return LDM(table)
    if kind.startswith("discrete"):
        prediction = {"discrete_eps": "epsilon", "discrete_v": "v_prediction"}[kind]
        return Discrete(table, prediction, quantize=case.hyperparameters["quantize"])
    kinds = {"cm": CM, "edm": EDM, "flow": Flow, "iddpm": IDDPM, "v_continuous": VContinuous, "ve": VE, "vp": VP}
    return kinds[kind]()


def precondition(case: Any) -> dict[str, Tensor]:
    inputs, options = case.inputs, case.hyperparameters
    preconditioning = preconditioning_of(case)
    x, sigma = inputs["x"], inputs["sigma"]

    def stub(z: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
        output = options["stub_a"] * z + options["stub_b"] * noise[:, None, None, None]
        output = output if condition is None else output + condition
        # A network of iDDPM has the variances behind the samples' channels.
        return torch.cat([output, output + 1], dim=1) if options["kind"] == "iddpm" else output

    denoiser = Preconditioned(stub, preconditioning)
    if "unconditional" in inputs:
        guided = ClassifierFreeGuidance(denoiser, options["guidance"], unconditional=inputs["unconditional"])
        results = {"denoised": guided(x, sigma, inputs["condition"])}
    else:
        results = {"denoised": denoiser(x, sigma)}
    results["network_input"], results["c_noise"] = network_input(preconditioning, x, sigma)
    if isinstance(preconditioning, VP | LDM):
        results["t_of_sigma"] = preconditioning.time(sigma)
        results["sigma_range"] = torch.tensor([preconditioning.sigma_min, preconditioning.sigma_max])
        if "t" in inputs:
            results["sigma_of_t"] = preconditioning.sigma(inputs["t"])
    if isinstance(preconditioning, IDDPM):
        results["u"] = preconditioning.levels
        results["rounded_index"] = preconditioning.index(sigma)
        results["rounded_sigma"] = preconditioning.levels[preconditioning.index(sigma)]
    return results


def gmm_denoiser(case: Any) -> dict[str, Tensor]:
    return {"denoised": denoiser_of(case)(case.inputs["x"], case.inputs["sigma"])}


ADAPTERS = {"precondition": precondition, "gmm_denoiser": gmm_denoiser}
