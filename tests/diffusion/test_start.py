"""The Gaussian start solves the ODE of a Gaussian exactly and follows a real model at large noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.diffusion.denoisers.closed_form import GaussianMixture, OptimalDenoiser
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.sampling import sample
from stillroom.diffusion.schedules import schedule
from stillroom.diffusion.solvers import make_solver
from stillroom.diffusion.start import GaussianStart, fit_gaussian_start
from stillroom.errors import InputError


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 5.0))
def test_the_start_is_the_exact_solution_for_gaussian_data(seed: int, sigma: float) -> None:
    variance = randn(3, seed=seed).abs() + 0.2
    mean = randn(3, seed=seed + 1)
    denoiser = GaussianMixture(torch.ones(1, dtype=torch.float64), mean[None], variance[None])
    start = GaussianStart(mean, torch.eye(3, dtype=torch.float64)[:2], variance[:2], variance[2].item(), sigma_max=20.0)
    noise = randn(4, 3, seed=seed + 2)
    solved = sample(denoiser, noise, schedule("logsnr", 1500, sigma, 20.0), make_solver("ipndm_v", order=4))
    torch.testing.assert_close(start(noise, sigma), solved, rtol=1e-6, atol=1e-6)


def test_a_fitted_start_follows_the_closed_form_of_data_at_large_noise_and_saves_evaluations() -> None:
    data = randn(300, 2, 4, 4) * torch.linspace(0.2, 1, 16, dtype=torch.float64).view(4, 4) + 0.3
    denoiser, noise = OptimalDenoiser(data), randn(16, 2, 4, 4, seed=1)
    start = fit_gaussian_start(data)
    fine = sample(denoiser, noise, schedule("logsnr", 200, 4.0, 80.0), make_solver("ipndm_v", order=3))
    assert (start(noise, 4.0) - fine).abs().max() < 0.05 * 4.0
    reference = sample(denoiser, noise, schedule("polynomial", 400, 0.002, 80.0), make_solver("ipndm_v", order=3))
    plain = Sampler(make_solver("dpmpp", order=2), tuple(schedule("time_uniform", 6, 0.002, 80.0).tolist()))
    levels = tuple(schedule("time_uniform", 6, 0.002, 6.0).tolist())
    started = Sampler(make_solver("dpmpp", order=2), levels, start=start)
    assert started.nfe == plain.nfe == 5
    errors = [(sampler(denoiser, noise) - reference).square().mean() for sampler in (plain, started)]
    assert errors[1] < errors[0]


def test_a_stored_sampler_keeps_its_start(tmp_path: Path) -> None:
    start = fit_gaussian_start(randn(20, 1, 3, 3).float(), rank=3)
    sampler = Sampler(make_solver("euler"), (5.0, 1.0, 0.0), start=start)
    sampler.save(tmp_path / "found.json")
    again = Sampler.load(tmp_path / "found.json")
    noise = torch.randn(2, 1, 3, 3)
    denoiser = OptimalDenoiser(randn(5, 1, 3, 3).float())
    assert torch.equal(sampler(denoiser, noise), again(denoiser, noise))
    (tmp_path / "found.start.safetensors").unlink()
    with pytest.raises(InputError, match=r"found\.start\.safetensors is missing"):
        Sampler.load(tmp_path / "found.json")
    (tmp_path / "found.start.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        Sampler.load(tmp_path / "found.json")


def test_bad_input_is_refused_in_one_line() -> None:
    start = fit_gaussian_start(randn(20, 4))
    with pytest.raises(InputError, match="shape"):
        start(randn(1, 5), 1.0)
    with pytest.raises(InputError, match="cannot reach 80"):
        start(randn(1, 4), 80.0)
    with pytest.raises(InputError, match="two samples"):
        fit_gaussian_start(randn(1, 4))
    with pytest.raises(InputError, match="not finite"):
        fit_gaussian_start(torch.full((3, 4), torch.nan))
