"""Golden adapters of GITS: deviation, dynamic programming, whole searches with and without a first step inserted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from diffusion_case import denoiser_of

from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.geometry.metrics import deviation
from stillroom.diffusion.gits import cheapest_path, find_first_step, gits
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.sampling import sample
from stillroom.diffusion.schedules import schedule
from stillroom.diffusion.solvers import make_solver
from stillroom.diffusion.thresholding import dynamic_threshold

SYSTEM = "gits"


def distance_from_the_chord(case: Any) -> dict[str, Tensor]:
    return {"deviation": deviation(case.inputs["trajectory"])}


def dynamic_programming(case: Any) -> dict[str, Tensor]:
    options = case.hyperparameters
    cost = case.inputs["cost"]
    return {
        f"indices.{points}": torch.tensor(cheapest_path(cost, points - 1, coefficient=options["coeff"]))
        for points in options["budgets"]
    }


def solver_of(name: str, order: int, options: dict[str, Any]) -> Any:
    if name in ("euler", "heun", "dpm2"):
        return make_solver(name)
    if name == "dpmpp":
        predict = "denoised" if options["teacher_predict_x0"] else "noise"
        final = options["teacher_lower_order_final"]
        return make_solver(name, order=order, predict=predict, lower_order_final=final)
    return make_solver(name, order=order, **({"coefficients": "published"} if name == "ipndm_v" else {}))


def search(case: Any) -> dict[str, Tensor]:
    options, latents = case.hyperparameters, case.inputs["latents"]
    rho = {"rho": options["rho"]} if options["schedule"] in ("polynomial", "time_uniform") else {}
    low, high = options["sigma_min"], options["sigma_max"]
    levels = schedule(options["schedule"], options["num_steps_teacher"], low, high, **rho)
    denoiser = denoiser_of(case)
    model = DenoisingModel(denoiser=denoiser, shape=tuple(latents.shape[2:]), sigma_min=low, sigma_max=high)
    teacher = solver_of(options["solver_teacher"], options["order"], options)
    transform = dynamic_threshold if options["solver_teacher"] == "dpmpp" and options["teacher_predict_x0"] else None
    costs = gits(model, metric=options["metric"], levels=levels, teacher=teacher, noise=latents, transform=transform)
    found = {"teacher_sigmas": torch.tensor(costs.levels), "cost": torch.tensor(costs.cost)}
    for points in options["budgets"]:
        indices = costs.indices(points - 1, coefficient=options["coeff"])
        found[f"indices.{points}"] = torch.tensor(indices)
        found[f"sigmas.{points}"] = torch.tensor(costs.sigmas(points - 1, coefficient=options["coeff"]))
    if "afs_student" in options:
        student = solver_of(options["afs_student"], options["afs_student_order"], options)
        target = sample(denoiser, latents[-1], levels, teacher, transform=transform)
        for points in options["afs_budgets"]:
            plain = Sampler(student, costs.sigmas(points - 1, coefficient=options["coeff"]))
            better = find_first_step(denoiser, plain, costs.levels, latents[-1], target) or plain
            found[f"afs_indices.{points}"] = torch.tensor([costs.levels.index(sigma) for sigma in better.sigmas])
    return found


ADAPTERS = {"deviation": distance_from_the_chord, "dp": dynamic_programming, "gits_schedule": search}
