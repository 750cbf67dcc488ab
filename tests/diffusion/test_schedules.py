"""Noise schedules: ends, strict fall, inverse time maps, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stillroom.diffusion.schedules import (
    ALIGN_YOUR_STEPS,
    SCHEDULES,
    align_your_steps,
    beta,
    discrete,
    flow,
    logsnr,
    polynomial,
    schedule,
    time_uniform,
    vp_betas,
    vp_sigma,
    vp_time,
    vp_zero,
)
from stillroom.diffusion.solvers.plan import as_sigmas
from stillroom.errors import InputError

LEVELS = np.geomspace(0.02, 20.0, 100).tolist()
FIXED = ("vp_zero", "align_your_steps")
ENDING_AT_ZERO = ("karras_zero", "exponential_zero", "polyexponential_zero", *FIXED)


def options_of(name: str) -> dict[str, Any]:
    return {"levels": LEVELS} if name == "discrete" else {}


@pytest.mark.parametrize("name", SCHEDULES)
@given(points=st.integers(3, 60), sigma_min=st.floats(0.002, 0.1), ratio=st.floats(50.0, 5e4))
@settings(max_examples=15, deadline=None)
def test_every_schedule_has_the_points_asked_for_falls_strictly_and_hits_its_ends(
    name: str, points: int, sigma_min: float, ratio: float
) -> None:
    sigma_max = sigma_min * ratio
    if name == "time_uniform":
        assume(sigma_min < 0.03)
    if name == "discrete":
        sigma_min, sigma_max = max(sigma_min, 0.02), min(sigma_max, 20.0)
    sigmas = schedule(name, points, sigma_min, sigma_max, **options_of(name))
    assert sigmas.dtype == torch.float64
    assert len(sigmas) == points
    as_sigmas(sigmas)
    if name not in FIXED:
        assert sigmas[0] == sigma_max
        assert sigmas[-1 - (name in ENDING_AT_ZERO)] == sigma_min
    assert (sigmas[-1] == 0) == (name in ENDING_AT_ZERO)


@given(points=st.integers(2, 40), rho=st.floats(1.0, 20.0))
@settings(max_examples=30, deadline=None)
def test_polynomial_is_even_in_the_root_of_sigma(points: int, rho: float) -> None:
    roots = polynomial(points, 0.01, 50.0, rho=rho) ** (1 / rho)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(points - 1), rtol=1e-7, atol=1e-9)


def test_a_polynomial_schedule_may_end_at_zero() -> None:
    assert polynomial(5, 0.0, 80.0)[-1] == 0


def test_logsnr_is_the_limit_of_polynomial() -> None:
    torch.testing.assert_close(polynomial(9, 0.002, 80.0, rho=1e6), logsnr(9, 0.002, 80.0), rtol=1e-4, atol=0)


def test_time_uniform_is_even_in_variance_preserving_time() -> None:
    times = vp_time(time_uniform(9, 0.002, 80.0).numpy(), *vp_betas(0.002, 80.0))
    np.testing.assert_allclose(times, np.linspace(1, 1e-3, 9), rtol=1e-9)
    roots = np.sqrt(vp_time(time_uniform(9, 0.002, 80.0, rho=2.0).numpy(), *vp_betas(0.002, 80.0)))
    np.testing.assert_allclose(np.diff(roots), np.diff(roots).mean(), rtol=1e-9)


@given(sigma=st.floats(1e-3, 1e3))
def test_variance_preserving_time_and_level_are_inverse(sigma: float) -> None:
    betas = vp_betas(0.002, 80.0)
    assert math.isclose(float(vp_sigma(vp_time(np.array([sigma]), *betas), *betas)[0]), sigma, rel_tol=1e-9)


def test_discrete_levels_come_back_where_the_points_are_the_model_s() -> None:
    sigmas = discrete(len(LEVELS), LEVELS[0], LEVELS[-1], levels=LEVELS)
    torch.testing.assert_close(sigmas.flip(0), torch.tensor(LEVELS, dtype=torch.float64), rtol=1e-9, atol=0)


def test_a_quantile_of_the_beta_distribution_holds_its_share() -> None:
    """Against the integral, by the midpoint rule after the substitution that removes the poles."""
    angle = (np.arange(200_000) + 0.5) / 200_000 * np.pi / 2
    density = np.sin(angle) ** (2 * 0.6 - 1) * np.cos(angle) ** (2 * 1.3 - 1)
    share = np.cumsum(density) / density.sum()
    for sigma, expected in zip(beta(9, 0.0, 1.0, alpha=0.6, beta=1.3).tolist(), np.linspace(1, 0, 9), strict=True):
        assert abs(np.interp(np.arcsin(np.sqrt(sigma)), angle, share) - expected) < 1e-5


def test_beta_with_both_parameters_1_is_even() -> None:
    torch.testing.assert_close(beta(7, 1.0, 7.0, alpha=1.0, beta=1.0), torch.arange(7.0, 0.0, -1.0).double())


@given(shift=st.floats(0.2, 5.0))
def test_the_time_shift_of_flow_matching_multiplies_the_levels(shift: float) -> None:
    torch.testing.assert_close(
        flow(8, 0.01 * shift, 30.0 * shift, shift=shift), shift * flow(8, 0.01, 30.0), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize("model", ALIGN_YOUR_STEPS)
def test_align_your_steps_returns_its_table_and_interpolates_its_logarithm(model: str) -> None:
    table = align_your_steps(11, model=model)
    assert tuple(table[:-1].tolist()) == pytest.approx(ALIGN_YOUR_STEPS[model], rel=1e-12)
    torch.testing.assert_close(align_your_steps(20, model=model)[:-1:2], table[:-1])


def test_schedules_with_a_range_of_their_own_leave_the_given_one_aside() -> None:
    assert torch.equal(schedule("vp_zero", 6, 1.0, 2.0), vp_zero(6))


@pytest.mark.parametrize(
    ("name", "points", "ends", "options", "message"),
    [
        ("polynomial", 1, (0.002, 80.0), {}, "at least two points"),
        ("karras_zero", 2, (0.002, 80.0), {}, "at least two points"),
        ("vp_zero", 1, (0.002, 80.0), {}, "at least two points"),
        ("polynomial", 5, (80.0, 80.0), {}, r"sigma_min \(80\) must be below sigma_max \(80\)"),
        ("logsnr", 5, (80.0, 0.002), {}, "must be below"),
        ("logsnr", 5, (0.0, 80.0), {}, "from 80 to 0; both must be positive"),
        ("karras_zero", 5, (0.0, 80.0), {}, "both must be positive"),
        ("polynomial", 5, (-1.0, 80.0), {}, "both must be positive"),
        ("polynomial", 5, (0.1, float("inf")), {}, "both must be positive and finite"),
        ("polynomial", 5, (float("nan"), 80.0), {}, "both must be positive and finite"),
        ("polynomial", 5, (0.002, 80.0), {"rho": 0.0}, "rho of the schedule is 0.0; it must be positive"),
        ("polynomial", 5, (0.002, 80.0), {"rh": 7.0}, "polynomial has no option 'rh'; it knows rho"),
        ("polynomal", 5, (0.002, 80.0), {}, "did you mean 'polynomial'"),
        ("discrete", 5, (0.02, 20.0), {}, "needs the option levels"),
        ("discrete", 5, (0.02, 20.0), {"levels": [3.0, 2.0]}, "at least two, positive and rising"),
        ("discrete", 5, (1e-9, 20.0), {"levels": [2.0, 2.1]}, "before time 0"),
        ("time_uniform", 9, (0.5, 0.6), {}, "time_uniform cannot span 0.5 to 0.6"),
        ("beta", 50, (0.0, 1.0), {"alpha": 0.01, "beta": 0.01}, "do not fall strictly"),
        ("align_your_steps", 11, (0.1, 1.0), {"model": "sd1"}, "unknown Align-Your-Steps table 'sd1'"),
    ],
)
def test_bad_input_is_named(
    name: str, points: int, ends: tuple[float, float], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        schedule(name, points, *ends, **options)
