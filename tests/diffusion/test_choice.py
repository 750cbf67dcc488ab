"""The automatic choice measures, generalises to other noise, and is stored whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillroom.diffusion.auto import choose_sampler
from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.load import load_denoiser
from stillroom.diffusion.quality import rmse
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.sampling import sample
from stillroom.diffusion.schedules import schedule
from stillroom.diffusion.solvers import make_solver
from stillroom.diffusion.solvers.fitted import Fitted, fit_multistep
from stillroom.errors import InputError


@pytest.fixture(scope="module")
def model() -> DenoisingModel:
    return load_denoiser("optimal:digits@0.2", images=300)


def test_the_choice_beats_the_usual_schedules_on_noise_it_has_not_seen(model: DenoisingModel, tmp_path: Path) -> None:
    choice = choose_sampler(model, 5, count=128, reference_steps=40, seed=3)
    noise = torch.randn(64, *model.shape, generator=torch.Generator().manual_seed(99))
    levels = schedule("polynomial", 301, model.sigma_min, model.sigma_max)
    fine = sample(model.denoiser, noise, levels, make_solver("ipndm_v", order=3))
    usual = [
        rmse(Sampler(make_solver(key), tuple(levels))(model.denoiser, noise), fine)
        for key in ("dpmpp", "unipc", "ipndm", "deis")
        for levels in (schedule(name, 6, 0.002, 80.0).tolist() for name in ("polynomial", "logsnr", "time_uniform"))
    ]
    assert choice.sampler.nfe == 5
    assert rmse(choice.sampler(model.denoiser, noise), fine) < min(usual)
    assert [c.rmse for c in choice.candidates] == sorted(c.rmse for c in choice.candidates)
    choice.sampler.save(tmp_path / "auto.json")
    again = Sampler.load(tmp_path / "auto.json")
    assert torch.equal(again(model.denoiser, noise), choice.sampler(model.denoiser, noise))


def test_the_same_seed_gives_the_same_choice(model: DenoisingModel) -> None:
    first, second = (choose_sampler(model, 3, count=16, reference_steps=20, seed=5) for _ in range(2))
    assert first.sampler == second.sampler
    assert first.evaluations == second.evaluations


def test_a_budget_of_one_has_a_choice_too(model: DenoisingModel) -> None:
    assert choose_sampler(model, 1, count=16, reference_steps=20).sampler.nfe == 1


@pytest.mark.parametrize("option", ["nfe", "count", "reference_steps"])
def test_numbers_out_of_range_are_named(model: DenoisingModel, option: str) -> None:
    with pytest.raises(InputError, match=f"{option} is 0"):
        choose_sampler(model, **{"nfe": 5, option: 0})


def test_fitted_weights_reach_the_targets_a_linear_rule_can_reach() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    solver, end = fit_multistep(lambda x, sigma, condition: x * x, x, (3.0, 2.0, 1.0), [2 * x + x * x, -x], ridge=0)
    torch.testing.assert_close(end, -x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.tensor(solver.rows[0]), torch.tensor([2.0, 1.0]), rtol=1e-6, atol=1e-6)
    states = sample(lambda x, sigma, condition: x * x, x / 3, (3.0, 2.0, 1.0), solver)
    torch.testing.assert_close(states, end)


def test_a_fitted_solver_refuses_another_schedule() -> None:
    with pytest.raises(InputError, match="fitted for 1 steps, the schedule has 2"):
        Fitted(((0.5, 0.5),)).plan((2.0, 1.0, 0.0))
    with pytest.raises(InputError, match="row 0 of a fitted solver has 3 numbers"):
        Fitted(((0.5, 0.5, 0.1),))
