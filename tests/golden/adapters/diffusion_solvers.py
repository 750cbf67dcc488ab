"""Golden adapters of the solvers, the noise schedules and dynamic thresholding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from golden.diffusion_case import denoiser_of
from stillroom.diffusion.sampling import Trajectory, trajectory
from stillroom.diffusion.schedules import karras_zero, schedule
from stillroom.diffusion.solvers import DEIS, DPMpp, Heun, make_solver
from stillroom.diffusion.thresholding import dynamic_threshold

SYSTEM = "diffusion-solvers"


class Counted:
    """Counts the calls of the case's closed-form denoiser."""

    def __init__(self, case: Any) -> None:
        self.calls = 0
        self.denoiser = denoiser_of(case)

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        self.calls += 1
        return self.denoiser(x, sigma, condition)


def solver_of(options: dict[str, Any]) -> Any:
    name = options["solver"]
    chosen: dict[str, Any] = {}
    if name == "dpm2":
        chosen["r"] = options["r"]
    elif name not in ("euler", "heun"):
        chosen["order"] = options["order"]
    if name == "ipndm_v":
        chosen["coefficients"] = "published"
    if name == "deis":
        chosen |= {"mode": options["deis_mode"], "quadrature": "published"}
    if name in ("dpmpp", "unipc"):
        chosen["predict"] = "denoised" if options["predict_x0"] else "noise"
        chosen["lower_order_final"] = options["lower_order_final"]
        chosen["max_ratio"] = None
    if name == "unipc":
        chosen["variant"] = options["variant"]
    return make_solver(name, **chosen)


def stable_diffusion_levels() -> list[float]:
    """Return the noise levels of the scaled-linear betas 0.00085 to 0.012, which the discrete cases are made with."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return levels_of((1 - betas).cumprod(0))


def levels_of(alphas_cumprod: Tensor) -> list[float]:
    levels: list[float] = ((1 - alphas_cumprod) / alphas_cumprod).sqrt().double().tolist()
    return levels


def schedule_of(case: Any, name: str) -> Tensor:
    options = case.hyperparameters
    if name == "custom":
        return case.inputs["sigmas"]
    names = {"polynomial": ["rho"], "time_uniform": ["rho"], "discrete": ["rho"], "karras_zero": ["rho"]}
    names |= {"polyexponential_zero": ["rho"], "beta": ["alpha", "beta"], "vp_zero": ["beta_d", "beta_min"]}
    chosen = {key: options[key] for key in names.get(name, []) if key in options}
    if name == "vp_zero":
        chosen["start"] = options["eps_s"]
    if name == "discrete":
        table = case.inputs.get("alphas_cumprod")
        chosen["levels"] = stable_diffusion_levels() if table is None else levels_of(table)
    points = options["num_steps"] + name.endswith("_zero")
    return schedule(name, points, options["sigma_min"], options["sigma_max"], **chosen)


def sample(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    denoiser, solver = Counted(case), solver_of(options)
    sigmas = schedule_of(case, options["schedule"])
    went = trajectory(
        denoiser,
        case.inputs["latents"],
        sigmas,
        solver,
        afs=options["afs"],
        denoise_to_zero=options["denoise_to_zero"],
        transform=dynamic_threshold if options.get("dynamic_thresholding") else None,
    )
    steps = len(sigmas) - 1
    results = {"sigmas": sigmas, "trajectory": went.states, "derivatives": went.derivatives[:steps]}
    check_evaluations(denoiser, went, options)
    if isinstance(solver, DEIS):
        table = torch.zeros(steps, solver.order, dtype=torch.float64)
        for i, row in enumerate(solver.coefficients(sigmas.tolist())):
            if i:
                table[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
        results["coefficients"] = table
    return results


def check_evaluations(denoiser: Counted, went: Trajectory, options: dict[str, Any]) -> None:
    assert denoiser.calls == went.nfe == options["nfe"], f"{denoiser.calls} calls instead of {options['nfe']}"


def sample_edm_heun(case: Any) -> dict[str, Tensor]:
    options, denoiser = case.hyperparameters, Counted(case)
    sigmas = karras_zero(options["num_steps"] + 1, options["sigma_min"], options["sigma_max"], rho=options["rho"])
    went = trajectory(denoiser, case.inputs["latents"].double(), sigmas, Heun())
    check_evaluations(denoiser, went, options)
    return {"sample": went.states[-1]}


def sample_dpmpp2m_to_zero(case: Any) -> dict[str, Tensor]:
    denoiser = Counted(case)
    went = trajectory(
        denoiser, case.inputs["latents"], case.inputs["sigmas"], DPMpp(2, lower_order_final=False, max_ratio=None)
    )
    check_evaluations(denoiser, went, case.hyperparameters)
    return {"sample": went.states[-1]}


ADAPTERS = {
    "sample": sample,
    "schedule": lambda case: {"sigmas": schedule_of(case, case.hyperparameters["type"])},
    "dynamic_threshold": lambda case: {
        "x": dynamic_threshold(
            case.inputs["x"], quantile=case.hyperparameters["quantile"], floor=case.hyperparameters["floor"]
        )
    },
    "sample_edm_heun": sample_edm_heun,
    "sample_dpmpp2m_to_zero": sample_dpmpp2m_to_zero,
}
