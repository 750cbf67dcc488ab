"""The schedulers keep diffusers' conventions, and sample as ``sample`` does."""

from __future__ import annotations

import builtins
import inspect
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.sampling import sample
from stillroom.diffusion.schedulers import SCHEDULERS, PlanScheduler, StepOutput, scheduler_for
from stillroom.diffusion.schedules import SCHEDULES
from stillroom.diffusion.solvers import IPNDM, DPMpp, Euler, Fitted, UniPC
from stillroom.diffusion.start import fit_gaussian_start
from stillroom.errors import InputError, MissingExtraError

KEYS = sorted(SCHEDULERS)
SIGMAS = [10.0, 5.0, 2.0, 1.0, 0.3, 0.1, 0.0]
TIMES = [1.0, 0.8, 0.5, 0.2, 0.1, 0.0]
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
SOME_KEYS = pytest.mark.parametrize("key", KEYS)
OTHERS = (
    diffusers.DDPMScheduler(beta_start=0.0002),
    diffusers.DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing"),
    diffusers.PNDMScheduler(steps_offset=1),
    diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
    diffusers.DPMSolverMultistepScheduler(solver_order=3, use_karras_sigmas=True, solver_type="heun"),
    diffusers.DEISMultistepScheduler(solver_order=3),
    diffusers.UniPCMultistepScheduler(solver_type="bh1"),
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    diffusers.EDMEulerScheduler(sigma_max=50.0),
)


def denoise(x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
    """A denoiser with curvature, of unit-variance data."""
    return x / (1 + sigma**2) + 0.1 * torch.tanh(x)


def output(prediction: str, x: Tensor, sigma: float, denoised: Tensor) -> Tensor:
    """What a model with this prediction type returns at the state ``x = x0 + sigma z``."""
    noise = (x - denoised) / sigma
    if prediction == "v_prediction":
        return (noise - sigma * denoised) / math.hypot(1, sigma)
    return {"epsilon": noise, "sample": denoised, "flow_prediction": noise}[prediction]


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 3, 4, 4)), generator=torch.Generator().manual_seed(seed))


def run(scheduler: PlanScheduler, y: Tensor, seen: Callable[[int, Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """Sample as a pipeline does, from the sample at the first timestep."""
    prediction = scheduler.config.prediction_type
    for k, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[k])
        scale = 1.0 if prediction == "flow_prediction" else math.hypot(1, sigma)
        x = y.to(torch.promote_types(y.dtype, torch.float32)) * scale
        model_output = output(prediction, x, sigma, denoise(x, torch.tensor(sigma))).to(y.dtype)
        y = scheduler.step(model_output, t, y).prev_sample
        if seen is not None:
            y = seen(k, t, y)
    return y


@pytest.mark.parametrize("prediction", PREDICTIONS)
@SOME_KEYS
def test_the_full_loop_is_what_sample_does(key: str, prediction: str) -> None:
    levels = TIMES if prediction == "flow_prediction" else SIGMAS
    scheduler = SCHEDULERS[key](prediction_type=prediction)
    scheduler.set_timesteps(sigmas=levels)
    z = latents()
    start = z if prediction == "flow_prediction" else z * levels[0] / math.hypot(1, levels[0])
    expected = sample(denoise, z, levels, scheduler._solver())
    torch.testing.assert_close(run(scheduler, start), expected, rtol=1e-5, atol=1e-5)


@SOME_KEYS
def test_a_stored_schedule_is_sampled_as_it_was_measured(key: str, tmp_path: Path) -> None:
    solver = SCHEDULERS[key]()._solver()
    for levels, afs, denoising in ((SIGMAS, True, False), (SIGMAS[:-1], False, True), (SIGMAS[:-1], True, True)):
        sampler = Sampler(solver, tuple(levels), afs=afs, denoise_to_zero=denoising)
        sampler.save(tmp_path / "schedule.json")
        z = latents()
        expected = sampler(denoise, z)
        for scheduler in (
            SCHEDULERS[key](schedule_file=str(tmp_path / "schedule.json")),
            scheduler_for(tmp_path / "schedule.json", {}),
            scheduler_for(sampler, diffusers.DDIMScheduler().config),
        ):
            scheduler.set_timesteps(sampler.nfe if scheduler.order == 1 else len(levels) - 1)
            assert len(scheduler.timesteps) == sampler.nfe
            start = z * levels[0] / math.hypot(1, levels[0]) * scheduler.init_noise_sigma
            torch.testing.assert_close(run(scheduler, start), expected, rtol=1e-5, atol=1e-5)


def test_a_stored_schedule_of_a_flow_is_integrated_in_its_own_variable() -> None:
    levels, z = (9.0, 3.0, 1.0, 0.2, 0.0), latents()
    sampler = Sampler(IPNDM(3), levels)
    scheduler = scheduler_for(sampler, diffusers.FlowMatchEulerDiscreteScheduler().config)
    scheduler.set_timesteps(4)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([0.9, 0.75, 0.5, 1 / 6, 0.0]))
    y = z * 0.9
    for t, sigma in zip(scheduler.timesteps, levels[:-1], strict=True):
        assert float(t) == pytest.approx(1000 * sigma / (1 + sigma))
        x = y * (1 + sigma)
        y = scheduler.step(output("flow_prediction", x, sigma, x * 0) - denoise(x, torch.tensor(sigma)) * 0, t, y)[0]
    torch.testing.assert_close(y, torch.zeros_like(y), atol=1e-6, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "flow_prediction"])
def test_a_stored_schedule_of_any_space_gives_the_same_samples(prediction: str) -> None:
    levels, z = (9.0, 3.0, 1.0, 0.2, 0.05), latents()
    sampler = Sampler(UniPC(3), levels)
    scheduler = scheduler_for(sampler, {"prediction_type": prediction})
    scheduler.set_timesteps(4)

    def scale(sigma: float) -> float:
        return 1 + sigma if prediction == "flow_prediction" else math.hypot(1, sigma)

    y = z * 9.0 / scale(9.0)
    for t, sigma in zip(scheduler.timesteps, levels[:-1], strict=True):
        x = y * scale(sigma)
        denoised = denoise(x, torch.tensor(sigma))
        velocity = (x - denoised) / sigma - denoised
        said = velocity if prediction == "flow_prediction" else (x - denoised) / sigma
        y = scheduler.step(said, t, y).prev_sample
    torch.testing.assert_close(y * scale(0.05), sampler(denoise, z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_models_with_preconditioning_stay_in_their_own_space(prediction: str) -> None:
    reference = diffusers.EDMEulerScheduler(prediction_type="epsilon" if prediction == "sample" else prediction)
    scheduler = SCHEDULERS["dpmpp"].from_config(reference.config, prediction_type=prediction)
    scheduler.set_timesteps(5)
    reference.set_timesteps(5)
    torch.testing.assert_close(scheduler.sigmas, reference.sigmas)
    torch.testing.assert_close(scheduler.timesteps, reference.timesteps)
    assert scheduler.init_noise_sigma == pytest.approx(float(reference.init_noise_sigma))
    z = latents()
    y = z * 80.0
    for k, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[k]
        scaled, expected = scheduler.scale_model_input(y, t), y / (sigma**2 + 0.25).sqrt()
        torch.testing.assert_close(scaled, expected)
        denoised, variance = denoise(y, sigma), sigma**2 + 0.25
        raw = (denoised - 0.25 / variance * y) / (sigma * 0.5 / variance.sqrt())
        said = {"epsilon": raw, "v_prediction": -raw, "sample": denoised}[prediction]
        y = scheduler.step(said, t, y).prev_sample
    torch.testing.assert_close(y, sample(denoise, z, scheduler.sigmas, scheduler._solver()), rtol=1e-4, atol=1e-4)


@SOME_KEYS
def test_explicit_sigmas_override_everything(key: str, tmp_path: Path) -> None:
    Sampler(Euler(), (3.0, 1.0, 0.0)).save(tmp_path / "other.json")
    for options in (
        {},
        {"schedule": "polynomial", "timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True, "sigma_max": 4.0},
        {"schedule_file": str(tmp_path / "other.json")},
    ):
        scheduler = SCHEDULERS[key](**options)
        for levels in (SIGMAS, torch.tensor(SIGMAS, dtype=torch.float64), np.array(SIGMAS), SIGMAS[:-1]):
            scheduler.set_timesteps(sigmas=levels)
            plan = scheduler._plan
            assert plan is not None
            assert plan.sigmas == tuple(np.asarray(levels).tolist())
            starts = [k for k in range(len(plan.calls)) if scheduler._begins_step(k)]
            shown = [*scheduler.sigmas[starts].tolist(), float(scheduler.sigmas[-1])]
            assert shown == np.float32(levels).tolist()
            table = scheduler.alphas_cumprod.double()
            known = ((1 - table) / table).sqrt().numpy()
            expected = np.interp(np.log(shown[:-1]), np.log(known), np.arange(1000))
            np.testing.assert_allclose(scheduler.timesteps[starts].numpy(), expected, atol=0.02)


@SOME_KEYS
def test_what_a_scheduler_shows_leads_back_to_the_same_schedule(key: str) -> None:
    scheduler = SCHEDULERS[key]()
    one_stage = scheduler.order == 1
    for options in ({}, {"timestep_spacing": "leading", "steps_offset": 1}, {"schedule": "logsnr"}):
        first = SCHEDULERS[key](**options)
        first.set_timesteps(7)
        keep = slice(None) if one_stage else slice(0, None, 2)
        levels = first.sigmas if one_stage else torch.cat([first.sigmas[::2], first.sigmas[-1:]])
        scheduler.set_timesteps(sigmas=levels)
        assert torch.equal(scheduler.sigmas, first.sigmas)
        assert torch.equal(scheduler.timesteps, first.timesteps)
        scheduler.set_timesteps(timesteps=first.timesteps[keep])
        torch.testing.assert_close(scheduler.sigmas, first.sigmas, rtol=2e-6, atol=0)


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: type(other).__name__)
@SOME_KEYS
def test_any_scheduler_s_configuration_is_enough(key: str, other: Any, tmp_path: Path) -> None:
    other.save_pretrained(tmp_path)
    for scheduler in (SCHEDULERS[key].from_config(other.config), SCHEDULERS[key].from_pretrained(tmp_path)):
        scheduler.set_timesteps(4)
        flow, edm = "Flow" in type(other).__name__, "EDM" in type(other).__name__
        if flow:
            assert scheduler.config.prediction_type == "flow_prediction"
            assert float(scheduler.sigmas[0]) == 1
            shifted = 3 * 0.75 / (1 + 2 * 0.75)
            second = next(float(s) for s in scheduler.sigmas if s < 1 and (scheduler.order == 1 or s <= 0.9001))
            assert second == pytest.approx(shifted) or scheduler.order == 2
        elif edm:
            assert (scheduler.config.sigma_data, float(scheduler.sigmas[0])) == (0.5, 50.0)
        else:
            for option in ("beta_start", "beta_schedule", "prediction_type"):
                assert scheduler.config[option] == other.config[option]
            torch.testing.assert_close(scheduler.alphas_cumprod, other.alphas_cumprod, rtol=1e-4, atol=0)


@SOME_KEYS
def test_a_configuration_survives_other_classes_and_files(key: str, tmp_path: Path) -> None:
    kind = SCHEDULERS[key]
    scheduler = kind(
        beta_schedule="scaled_linear", schedule="polynomial", schedule_options={"rho": 5.0}, steps_offset=1
    )
    scheduler.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    expected = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
    assert expected == dict(loaded.config)
    compatible = scheduler.compatibles
    assert diffusers.DPMSolverMultistepScheduler in compatible
    assert set(SCHEDULERS.values()) <= set(compatible)
    for other in compatible if key == "euler" else (diffusers.DDIMScheduler, diffusers.UniPCMultistepScheduler, kind):
        passed = other.from_config(scheduler.config)
        back = kind.from_config(passed.config)
        assert {name: back.config[name] for name in scheduler.config} == dict(scheduler.config)


def test_an_option_of_another_class_is_kept_and_an_unknown_one_named(caplog: pytest.LogCaptureFixture) -> None:
    made = SCHEDULERS["euler"].from_config({"solver_order": 3, "use_lu_lambdas": True})
    assert made.config["solver_order"] == 3
    assert SCHEDULERS["deis"].from_config(made.config).config.solver_order == 3
    made, unused = SCHEDULERS["euler"].from_config({"nonsense": 1}, return_unused_kwargs=True)
    assert unused == {"nonsense": 1}
    with pytest.raises(TypeError, match="nonsense"):
        SCHEDULERS["euler"](nonsense=1)


def test_names_are_ours_alone() -> None:
    for kind in SCHEDULERS.values():
        assert not hasattr(diffusers, kind.__name__)
        parameters = inspect.signature(kind.__init__).parameters
        assert list(parameters)[1] == "num_train_timesteps"
        assert not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters.values())


@SOME_KEYS
def test_any_number_of_steps(key: str) -> None:
    y = latents(1, 3, 2, 2)
    for options in ({}, {"final_sigmas_type": "sigma_min"}, {"timestep_spacing": "leading"}, {"schedule": "beta"}):
        for steps in (1, 2, 3, 5, 50) if options else (1, 2, 3, 50, 999, 1000):
            scheduler = SCHEDULERS[key](**options)
            scheduler.set_timesteps(steps)
            last = options.get("final_sigmas_type") != "sigma_min"
            assert len(scheduler.timesteps) == scheduler.order * steps - (scheduler.order - 1) * last
            assert scheduler.num_inference_steps == steps
            assert bool((scheduler.sigmas.diff() <= 0).all())
            result = scheduler.step(0.1 * y, scheduler.timesteps[0], y).prev_sample
            assert bool(result.isfinite().all())


PAIRS = [
    ("euler", "EulerDiscreteScheduler", {}),
    ("heun", "HeunDiscreteScheduler", {"beta_start": 1e-4, "beta_end": 0.02}),
    ("dpmpp", "DPMSolverMultistepScheduler", {}),
    ("unipc", "UniPCMultistepScheduler", {}),
]


@pytest.mark.parametrize(("key", "name", "options"), PAIRS)
def test_timesteps_and_levels_are_those_of_the_scheduler_of_the_same_name(key: str, name: str, options: Any) -> None:
    cases: list[dict[str, Any]] = [
        {"timestep_spacing": spacing, "steps_offset": offset, **more}
        for spacing in ("linspace", "leading", "trailing")
        for offset in (0, 1)
        for more in ({}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
    ]
    for case in cases:
        ours = SCHEDULERS[key](**{**options, **case})
        theirs = getattr(diffusers, name)(**{**options, **case})
        for steps in (1, 5, 10, 30):
            ours.set_timesteps(steps)
            theirs.set_timesteps(steps)
            torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps.float(), rtol=0, atol=2e-5)
            torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("key", "name", "options"),
    [
        ("dpmpp", "DPMSolverMultistepScheduler", {"solver_order": 2}),
        ("dpmpp", "DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("dpmpp", "DPMSolverMultistepScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
        ("unipc", "UniPCMultistepScheduler", {"solver_order": 2}),
        ("unipc", "UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
        ("dpmpp", "DPMSolverMultistepScheduler", {"thresholding": True, "sample_max_value": 1.5}),
    ],
)
def test_samples_are_those_of_the_scheduler_of_the_same_name(key: str, name: str, options: Any) -> None:
    ours, theirs = SCHEDULERS[key](**options), getattr(diffusers, name)(**options)
    z, results = latents(), []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(8)
        y = z
        for t in scheduler.timesteps:
            y = scheduler.step(torch.tanh(y) * (0.3 + t / 1000), t, y).prev_sample
        results.append(y)
    torch.testing.assert_close(*results, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "vp_zero"])
def test_every_named_schedule_makes_the_steps_that_are_asked_for(name: str) -> None:
    for end in ("zero", "sigma_min"):
        scheduler = SCHEDULERS["euler"](schedule=name, final_sigmas_type=end)
        scheduler.set_timesteps(6)
        assert len(scheduler.timesteps) == 6
        assert (float(scheduler.sigmas[-1]) == 0) == (end == "zero" or name.endswith(("_zero", "your_steps")))


@pytest.mark.parametrize(
    ("option", "name"),
    [("use_karras_sigmas", "polynomial"), ("use_exponential_sigmas", "logsnr"), ("use_beta_sigmas", "beta")],
)
def test_diffusers_names_of_schedules_are_understood(option: str, name: str) -> None:
    first, second = SCHEDULERS["euler"](**{option: True}), SCHEDULERS["euler"](schedule=name)
    theirs = diffusers.EulerDiscreteScheduler(**{option: True})
    for scheduler in (first, second, theirs):
        scheduler.set_timesteps(7)
    assert torch.equal(first.sigmas, second.sigmas)
    torch.testing.assert_close(first.sigmas, theirs.sigmas, rtol=1e-3, atol=0)
    torch.testing.assert_close(first.timesteps.float(), theirs.timesteps.float(), rtol=1e-3, atol=0.2)


def test_timesteps_may_be_whole_while_levels_stay_exact() -> None:
    scheduler = SCHEDULERS["dpmpp"](integer_timesteps=True)
    scheduler.set_timesteps(sigmas=SIGMAS)
    assert scheduler.timesteps.dtype == torch.int64
    assert scheduler.sigmas.tolist() == torch.tensor(SIGMAS).tolist()
    continuous = SCHEDULERS["dpmpp"](timestep_type="continuous")
    continuous.set_timesteps(sigmas=SIGMAS)
    torch.testing.assert_close(continuous.timesteps, torch.tensor(SIGMAS[:-1]).log() / 4)


@SOME_KEYS
def test_noise_is_added_as_it_is_removed(key: str) -> None:
    scheduler = SCHEDULERS[key]()
    clean, noise = latents(4, 3, 4, 4), latents(4, 3, 4, 4, seed=1)
    steps = torch.tensor([0, 10, 500, 999])
    before = scheduler.add_noise(clean, noise, steps)
    alphas = scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
    torch.testing.assert_close(before, alphas.sqrt() * clean + (1 - alphas).sqrt() * noise, rtol=1e-4, atol=1e-4)
    scheduler.set_timesteps(10)
    torch.testing.assert_close(scheduler.add_noise(clean, noise, steps), before, rtol=1e-4, atol=1e-4)
    for k in (0, 5):
        t = scheduler.timesteps[scheduler.order * k]
        noisy = scheduler.add_noise(clean, noise, t[None])
        scheduler.set_timesteps(10)
        step = scheduler.step(noise, t, noisy)  # the true noise is the exact output
        torch.testing.assert_close(step.pred_original_sample, clean, rtol=1e-3, atol=1e-3)
        sigma = scheduler.sigmas[scheduler.order * k + 1]
        after = (clean + sigma * noise) / (1 + sigma**2).sqrt()
        torch.testing.assert_close(step.prev_sample, after, rtol=1e-3, atol=1e-3)


def test_a_flow_s_noise_is_a_straight_line() -> None:
    scheduler = SCHEDULERS["euler"].from_config(diffusers.FlowMatchEulerDiscreteScheduler().config)
    clean, noise = latents(), latents(seed=1)
    scheduler.set_timesteps(4)
    noisy = scheduler.scale_noise(clean, scheduler.timesteps[1:2].expand(2), noise)
    torch.testing.assert_close(noisy, 0.25 * clean + 0.75 * noise)
    assert scheduler.timesteps.tolist() == [1000.0, 750.0, 500.0, 250.0]
    torch.testing.assert_close(run(scheduler, latents()).isfinite().all(), torch.tensor(True))


@pytest.mark.parametrize("key", KEYS)
def test_a_straight_flow_is_followed_exactly_from_pure_noise(key: str) -> None:
    scheduler = SCHEDULERS[key](prediction_type="flow_prediction")
    scheduler.set_timesteps(3)
    data, z = latents(seed=1), latents()
    y = z
    for t in scheduler.timesteps:
        y = scheduler.step(z - data, t, y).prev_sample
    torch.testing.assert_close(y, data, rtol=1e-5, atol=1e-5)


def test_the_grid_that_flow_pipelines_pass_means_their_number_of_steps() -> None:
    scheduler = SCHEDULERS["euler"](prediction_type="flow_prediction", use_dynamic_shifting=True)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for one in (scheduler, theirs):
        one.set_timesteps(sigmas=np.linspace(1.0, 1 / 5, 5), mu=0.7)
    torch.testing.assert_close(scheduler.sigmas, theirs.sigmas)
    torch.testing.assert_close(scheduler.timesteps, theirs.timesteps)
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.1], mu=0.7)
    assert scheduler.sigmas.tolist() == torch.tensor([1.0, 0.5, 0.1, 0.0]).tolist()
    static = SCHEDULERS["euler"](prediction_type="flow_prediction", flow_shift=3.0, shift_terminal=0.1)
    static.set_timesteps(4)
    assert float(static.sigmas[-2]) == pytest.approx(0.1)


@pytest.mark.parametrize("key", KEYS)
def test_a_trajectory_may_begin_anywhere(key: str) -> None:
    scheduler = SCHEDULERS[key]()
    z, ends = latents(), []
    solver = scheduler._solver()
    for begin in range(1, 2 * 6 - 1):
        scheduler.set_timesteps(sigmas=SIGMAS)
        if begin >= len(scheduler.timesteps):
            break
        scheduler.set_begin_index(begin)
        assert scheduler.begin_index == begin
        sigma = float(scheduler.sigmas[begin])
        y = z * sigma / math.hypot(1, sigma)
        for k in range(begin, len(scheduler.timesteps)):
            level = float(scheduler.sigmas[k])
            x = y * math.hypot(1, level)
            said = (x - denoise(x, torch.tensor(level))) / level
            y = scheduler.step(said, scheduler.timesteps[k], y, return_dict=False)[0]
            assert scheduler.step_index == k + 1
        if sigma in torch.tensor(SIGMAS).tolist() and scheduler._begins_step(begin):
            place = torch.tensor(SIGMAS).tolist().index(sigma)
            torch.testing.assert_close(y, sample(denoise, z, SIGMAS[place:], solver), rtol=1e-4, atol=1e-5)
            ends.append(begin)
        assert bool(y.isfinite().all())
    assert len(ends) == 5


def test_the_first_timestep_says_where_to_begin() -> None:
    scheduler = SCHEDULERS["heun"]()
    scheduler.set_timesteps(4)
    repeated = scheduler.timesteps.tolist()
    assert repeated[1] == repeated[2]
    assert scheduler.index_for_timestep(scheduler.timesteps[1]) == 2  # the one that begins a step
    assert scheduler.index_for_timestep(repeated[1]) == 2
    assert scheduler.index_for_timestep(torch.tensor(repeated[0])) == 0
    assert scheduler.index_for_timestep(0) == len(repeated) - 1  # the nearest
    assert scheduler.index_for_timestep(7.0, torch.tensor([9.0, 7.0])) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@SOME_KEYS
def test_the_state_is_never_halved(key: str, dtype: torch.dtype) -> None:
    scheduler, exact = SCHEDULERS[key](), SCHEDULERS[key]()
    z = latents().to(dtype)
    for one in (scheduler, exact):
        one.set_timesteps(sigmas=SIGMAS)
    reference = run(exact, z.double())
    result = run(scheduler, z)
    assert result.dtype == dtype
    tolerance = {torch.float16: 3e-3, torch.bfloat16: 3e-2}.get(dtype, 1e-5)
    torch.testing.assert_close(result.double(), reference, rtol=tolerance, atol=tolerance)


def test_a_pipeline_in_half_precision_does_not_round_the_solver_s_state() -> None:
    z = latents(1, 3, 16, 16).half()
    ends = []
    for touched in (False, True):
        scheduler = SCHEDULERS["euler"]()
        scheduler.set_timesteps(50)
        y = z
        for t in scheduler.timesteps:
            y = scheduler.step(torch.zeros_like(y), t, y).prev_sample
            y = y.clone() if touched else y
        ends.append(y.double())
    exact = z.double() * math.hypot(1, float(scheduler.sigmas[0]))
    kept, rounded = ((end - exact).abs().max().item() for end in ends)
    assert kept < rounded


def test_what_a_pipeline_changes_between_steps_counts() -> None:
    for in_place in (False, True):
        scheduler = SCHEDULERS["ipndm"](solver_order=1)
        scheduler.set_timesteps(sigmas=[4.0, 2.0, 1.0])

        def changed(k: int, t: Tensor, y: Tensor, in_place: bool = in_place) -> Tensor:
            return y if k else (y.mul_(0) if in_place else y * 0)

        end = run(scheduler, latents(), changed)
        torch.testing.assert_close(end, torch.zeros_like(end))


@SOME_KEYS
def test_the_same_noise_gives_the_same_sample_again(key: str) -> None:
    scheduler, ends = SCHEDULERS[key](), []
    for _ in range(2):
        scheduler.set_timesteps(7)
        ends.append(run(scheduler, latents()))
    assert torch.equal(*ends)


@SOME_KEYS
def test_gradients_flow_through_every_step(key: str) -> None:
    scheduler = SCHEDULERS[key]()
    scheduler.set_timesteps(sigmas=SIGMAS)
    z = latents(1, 1, 2, 2).double().requires_grad_()

    def end(z: Tensor) -> Tensor:
        scheduler.set_timesteps(sigmas=SIGMAS)
        return run(scheduler, z)

    assert torch.autograd.gradcheck(end, z)


class Reads(TorchDispatchMode):
    """Collects what is done to tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.done.append(func.overloadpacket._qualified_op_name.split("::")[1])
        return func(*args, **(kwargs or {}))


@SOME_KEYS
def test_a_step_is_a_handful_of_operations_and_reads_nothing(key: str) -> None:
    scheduler = SCHEDULERS[key]()
    scheduler.set_timesteps(6)
    y, said = latents(), latents(seed=1)
    counts = []
    for t in list(scheduler.timesteps):
        with Reads() as reads:
            y = scheduler.step(said, t, y, return_dict=False)[0]
        assert not {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"} & set(reads.done)
        counts.append(len([name for name in reads.done if name not in ("view", "unsafe_view", "t", "alias")]))
    assert max(counts[1:]) <= (5 if key == "unipc" else 4)


def test_the_output_is_a_record_or_a_tuple() -> None:
    scheduler = SCHEDULERS["euler"]()
    scheduler.set_timesteps(2)
    y = latents()
    record = scheduler.step(y, scheduler.timesteps[0], y, generator=torch.Generator(), eta=0.0)
    assert isinstance(record, StepOutput)
    scheduler.set_timesteps(2)
    previous, denoised = scheduler.step(y, scheduler.timesteps[0], y, return_dict=False)
    assert torch.equal(previous, record.prev_sample)
    assert torch.equal(denoised, record["pred_original_sample"])


def test_a_learned_variance_is_left_aside() -> None:
    y, said = latents(), latents(2, 6, 4, 4, seed=1)
    ends = []
    for options, model_output in (({"variance_type": "learned_range"}, said), ({}, said[:, :3])):
        scheduler = SCHEDULERS["dpmpp"](**options)
        scheduler.set_timesteps(3)
        ends.append(scheduler.step(model_output, scheduler.timesteps[0], y).prev_sample)
    assert torch.equal(*ends)


def test_a_fitted_rule_is_a_scheduler_too(tmp_path: Path) -> None:
    rows = ((0.4, 0.6), (0.3, 0.9, -0.2), (0.1, 0.8, 0.2, -0.1), (0.0, 1.0))
    sampler = Sampler(Fitted(rows), (30.0, 6.0, 1.0, 0.2, 0.0))
    sampler.save(tmp_path / "auto.json")
    scheduler = scheduler_for(tmp_path / "auto.json", diffusers.DDPMScheduler().config)
    scheduler.save_pretrained(tmp_path)
    for one in (scheduler, type(scheduler).from_pretrained(tmp_path), type(scheduler).from_config(scheduler.config)):
        one.set_timesteps(4)
        z = latents()
        end = run(one, z * 30.0 / math.hypot(1, 30.0))
        torch.testing.assert_close(end, sampler(denoise, z), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="fitted for 0 steps"):
        type(scheduler)().set_timesteps(4)


def test_a_gaussian_start_belongs_to_the_scheduler(tmp_path: Path) -> None:
    data = latents(32, 3, 4, 4, seed=3) * 0.5 + 0.2
    start = fit_gaussian_start(data, sigma_max=80.0)
    sampler = Sampler(DPMpp(2), (10.0, 2.0, 0.5, 0.0), start=start)
    sampler.save(tmp_path / "schedule.json")
    z = latents()
    expected = sampler(denoise, z)
    first = scheduler_for(tmp_path / "schedule.json", {})
    first.save_pretrained(tmp_path / "scheduler")
    for scheduler in (first, type(first).from_pretrained(tmp_path / "scheduler"), scheduler_for(sampler, {})):
        scheduler.set_timesteps(3)
        y = z
        for k, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[k]
            x = scheduler.scale_model_input(y, t) * (1 + sigma**2).sqrt()
            y = scheduler.step((x - denoise(x, sigma)) / sigma, t, y).prev_sample
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    scheduler.set_timesteps(3)
    with pytest.raises(InputError, match="scale_model_input"):
        scheduler.step(z, scheduler.timesteps[0], z)
    with pytest.raises(InputError, match="missing"):
        type(first).from_config(scheduler_for(sampler, {}).config)


@given(st.lists(st.floats(0.01, 200.0), min_size=2, max_size=8, unique=True), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_schedule_is_sampled_as_sample_does(levels: list[float], zero: bool) -> None:
    levels = sorted(levels, reverse=True)
    if min(a / b for a, b in itertools.pairwise(levels)) < 1.05:
        return
    levels = [*levels, 0.0] if zero else levels
    scheduler = SCHEDULERS["dpmpp"]()
    scheduler.set_timesteps(sigmas=levels)
    z = latents(1, 2, 2, 2).double()
    y = z * levels[0] / math.hypot(1, levels[0])
    for t, sigma in zip(scheduler.timesteps, levels, strict=False):
        x = y * math.hypot(1, sigma)
        y = scheduler.step((x - denoise(x, torch.tensor(sigma))) / sigma, t, y).prev_sample
    expected = sample(denoise, z, levels, scheduler._solver())
    torch.testing.assert_close(y * math.hypot(1, levels[-1]), expected, rtol=1e-5, atol=1e-5)


def step_without_schedule() -> None:
    SCHEDULERS["euler"]().step(latents(), 1, latents())


def step_too_far() -> None:
    scheduler = SCHEDULERS["euler"]()
    scheduler.set_timesteps(1)
    for _ in range(2):
        scheduler.step(latents(), scheduler.timesteps[0], latents())


def set_steps(**options: Any) -> Callable[..., None]:
    return lambda **given: SCHEDULERS["dpmpp"](**options).set_timesteps(**given)


MISTAKES: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (step_without_schedule, {}, "call set_timesteps first"),
    (step_too_far, {}, "all 1 evaluations were made"),
    (set_steps(), {}, "needs num_inference_steps"),
    (set_steps(), {"num_inference_steps": 0}, "must be 1 to 1000"),
    (set_steps(), {"num_inference_steps": 1001}, "must be 1 to 1000"),
    (set_steps(), {"sigmas": [1.0, 2.0]}, "fall strictly"),
    (set_steps(), {"sigmas": [1.0, float("nan")]}, "noise level 1"),
    (set_steps(), {"sigmas": [2.0, 1.0, 0.0], "num_inference_steps": 5}, "num_inference_steps is 5"),
    (set_steps(), {"sigmas": [2.0, 1.0], "timesteps": [3]}, "not both"),
    (set_steps(schedule="polynomal"), {"num_inference_steps": 5}, "polynomial"),
    (set_steps(schedule="logsnr", use_karras_sigmas=True), {"num_inference_steps": 5}, "several schedules"),
    (set_steps(timestep_spacing="lin"), {"num_inference_steps": 5}, "timestep_spacing"),
    (set_steps(schedule_sigmas=[2.0, 1.0, 0.0]), {"num_inference_steps": 50}, "num_inference_steps=2"),
    (set_steps(afs=True), {"sigmas": [2.0, 0.0]}, "more steps"),
    (set_steps(denoise_to_zero=True), {"num_inference_steps": 5}, "ends above 0"),
    (set_steps(prediction_type="flow_prediction", use_dynamic_shifting=True), {"num_inference_steps": 5}, "needs mu"),
    (
        set_steps(prediction_type="flow_prediction", shift=2.0, flow_shift=3.0),
        {"num_inference_steps": 5},
        "same option",
    ),
    (SCHEDULERS["euler"], {"prediction_type": "noise"}, "prediction_type is 'noise'"),
    (SCHEDULERS["euler"], {"beta_schedule": "cubic"}, "beta_schedule"),
    (SCHEDULERS["euler"], {"schedule_file": "absent.json"}, "absent.json"),
    (SCHEDULERS["dpmpp"], {"solver_order": 4}, "order"),
    (SCHEDULERS["dpmpp"], {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
    (
        SCHEDULERS["dpmpp"].from_config,
        {"config": {"algorithm_type": "sde-dpmsolver++"}},
        "stochastic",
    ),
    (SCHEDULERS["euler"].from_config, {"config": {"invert_sigmas": True}}, "invert_sigmas"),
]


@pytest.mark.parametrize(("call", "given", "said"), MISTAKES)
def test_mistakes_are_one_clear_line(call: Callable[..., Any], given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        call(**given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"), [({"eta": 0.5}, "deterministic"), ({"shape": (2, 4, 4, 4)}, "(2, 4, 4, 4)")]
)
def test_mistakes_at_a_step_are_one_clear_line(options: dict[str, Any], said: str) -> None:
    scheduler = SCHEDULERS["euler"]()
    scheduler.set_timesteps(3)
    shape = options.pop("shape", (2, 3, 4, 4))
    with pytest.raises(InputError, match=said.replace("(", r"\(").replace(")", r"\)")):
        scheduler.step(latents(*shape), scheduler.timesteps[0], latents(), **options)


def test_v_prediction_does_not_exist_for_flows() -> None:
    scheduler = SCHEDULERS["euler"](use_flow_sigmas=True, prediction_type="v_prediction")
    scheduler.set_timesteps(3)
    with pytest.raises(InputError, match="v_prediction"):
        scheduler.step(latents(), scheduler.timesteps[0], latents())


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("stillroom.diffusion.schedulers")]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "diffusers":
            raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError, match=r"stillroom\[diffusion\]"):
        __import__("stillroom.diffusion.schedulers")
