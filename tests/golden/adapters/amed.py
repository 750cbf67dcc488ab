"""Golden adapters of AMED: predictor, sampling, the steps of training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from diffusion_case import denoiser_of

from stillroom.diffusion.amed import AMEDSampler, Predictor, Student, sweep, update
from stillroom.diffusion.denoiser import per_sample
from stillroom.diffusion.sampling import trajectory
from stillroom.diffusion.schedules import schedule
from stillroom.diffusion.solvers import make_solver
from stillroom.diffusion.thresholding import dynamic_threshold

SYSTEM = "amed"


def predictor_of(case: Any) -> Predictor:
    options = case.hyperparameters
    predictor = Predictor(
        scale_dir=options["scale_dir"], scale_time=options["scale_time"], hidden=options["hidden_dim"]
    )
    weights = {name.removeprefix("param."): value for name, value in case.inputs.items() if name.startswith("param.")}
    predictor.to(next(iter(weights.values())).dtype).load_state_dict(weights)
    return predictor


def predictor_forward(case: Any) -> dict[str, Tensor]:
    inputs, predictor = case.inputs, predictor_of(case)
    outputs = predictor(inputs["bottleneck"], inputs["sigma_cur"], inputs["sigma_next"])._asdict()
    sum(value.sum() for value in outputs.values()).backward()
    return outputs | {f"grad.{name}": value.grad for name, value in predictor.named_parameters()}


class Model:
    """The case's closed-form denoiser with its feature map."""

    def __init__(self, case: Any) -> None:
        self.denoiser, self.weight = denoiser_of(case), case.inputs["bottleneck_weight"]
        self.latest: Tensor | None = None
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        self.calls += 1
        scaled = (x / (per_sample(sigma, x) ** 2 + 0.25).sqrt()).flatten(1)
        self.latest = (scaled @ self.weight).tanh().unflatten(1, (-1, 8, 8)).detach()
        denoised: Tensor = self.denoiser(x, sigma, condition)
        return denoised

    def feature(self) -> Tensor:
        assert self.latest is not None
        return self.latest


def student_of(options: dict[str, Any]) -> Student:
    chosen = {"rule": options["student"], "order": options.get("order", 3)}
    if options["student"] == "dpmpp":
        denoised = options["predict_x0"]
        chosen |= {"predict": "denoised" if denoised else "noise", "threshold": denoised}
        chosen["lower_order_final"] = options["lower_order_final"]
    return Student(**chosen)


def sigmas_of(options: dict[str, Any], points: int) -> Tensor:
    extra = {"rho": options["rho"]} if options["schedule"] in ("polynomial", "time_uniform", "discrete") else {}
    return schedule(options["schedule"], points, options["sigma_min"], options["sigma_max"], **extra)


def amed_sample(case: Any) -> dict[str, Tensor]:
    options, model, latents = case.hyperparameters, Model(case), case.inputs["latents"]
    sigmas = sigmas_of(options, options["num_steps"])
    sampler = AMEDSampler(
        predictor_of(case), student_of(options), tuple(sigmas.tolist()), options["afs"], feature=model.feature
    )
    states, predictions = sampler.trajectory(model, latents)
    assert model.calls == sampler.nfe == options["nfe"]
    columns = {
        name: torch.stack([value[:, 0].expand(len(latents)) for value in values])
        for name, values in zip(predictions[0]._fields, zip(*predictions, strict=True), strict=True)
    }
    return {"sigmas": sigmas, "trajectory": torch.stack(states), **columns}


def training(case: Any, optimizer: torch.optim.Optimizer | None, predictor: Predictor) -> dict[str, Tensor]:
    options, model, latents = case.hyperparameters, Model(case), case.inputs["latents"]
    student, between = student_of(options), options["M"] + 1
    sigmas = sigmas_of(options, between * (options["num_steps"] - 1) + 1)
    given: dict[str, Any] = {"order": options["order"]} if options["teacher"] in ("ipndm", "dpmpp") else {}
    if options["teacher"] == "dpmpp":
        given |= {"predict": student.predict, "lower_order_final": student.lower_order_final}
    transform = dynamic_threshold if student.threshold else None
    teacher = make_solver(options["teacher"], **given)
    targets = trajectory(model, latents, sigmas, teacher, transform=transform).states[between::between]
    results = {"sigmas": sigmas[::between], "teacher": targets}
    steps = sweep(
        model,
        student,
        predictor,
        latents,
        targets,
        sigmas[::between],
        afs=options["afs"],
        read=lambda denoised: model.feature(),
    )
    for k, (loss, state) in enumerate(steps):
        results |= {f"loss.{k}": loss.detach(), f"student.{k}": state.detach()}
        if optimizer is not None:
            update(optimizer, loss)
        else:
            named = dict(predictor.named_parameters())
            gradients = torch.autograd.grad(loss, list(named.values()))
            results |= {f"grad.{k}.{name}": value for name, value in zip(named, gradients, strict=True)}
    return results


def amed_train_step(case: Any) -> dict[str, Tensor]:
    return training(case, None, predictor_of(case))


def amed_train_sweep(case: Any) -> dict[str, Tensor]:
    options, predictor = case.hyperparameters, predictor_of(case)
    assert options["optimizer"] == "adam"
    optimizer = torch.optim.Adam(
        predictor.parameters(), lr=options["lr"], betas=tuple(options["betas"]), eps=options["eps"]
    )
    results = training(case, optimizer, predictor)
    return results | {f"param_after.{name}": value.detach() for name, value in predictor.named_parameters()}


ADAPTERS = {
    "predictor_forward": predictor_forward,
    "amed_sample": amed_sample,
    "amed_train_step": amed_train_step,
    "amed_train_sweep": amed_train_sweep,
}
