"""What trajectories say about a model: mean shift, Gaussian score, distance from the optimum, interpolation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.diffusion.denoisers.closed_form import GaussianMixture, OptimalDenoiser
from stillroom.diffusion.geometry.gaussian import GaussianScore, fit_gaussian_score
from stillroom.diffusion.geometry.gaussian_start import gaussian_start
from stillroom.diffusion.geometry.interpolation import (
    interpolate_linear,
    interpolate_spherical,
    interpolate_variance_preserving,
)
from stillroom.diffusion.geometry.jump import mean_shift_weights, ode_jump
from stillroom.diffusion.geometry.score_deviation import score_deviation
from stillroom.diffusion.sampling import trajectory
from stillroom.diffusion.solvers.euler import Euler
from stillroom.errors import InputError

SIGMAS = [20.0, 8.0, 3.0, 1.0, 0.4, 0.1]


def points(seed: int, count: int = 20) -> torch.Tensor:
    return torch.randn(count, 1, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=8, unique=True))
def test_mean_shift_weights_are_convex_and_telescope(levels: list[float]) -> None:
    sigmas = sorted(levels, reverse=True)
    initial, denoised = mean_shift_weights(sigmas)
    assert (denoised >= 0).all()
    torch.testing.assert_close(initial + denoised.sum(1), torch.ones(len(sigmas), dtype=torch.float64))
    s = torch.tensor(sigmas, dtype=torch.float64)
    torch.testing.assert_close(initial, s / s[0])
    expected = (s[:, None] * (1 / s[1:] - 1 / s[:-1])).tril(-1)
    torch.testing.assert_close(denoised, expected, rtol=1e-9, atol=1e-12)


def test_weights_rebuild_the_states_of_eulers_method() -> None:
    path = trajectory(OptimalDenoiser(points(0)), points(1, 4), SIGMAS, Euler())
    initial, denoised = mean_shift_weights(SIGMAS)
    rebuilt = initial.view(-1, 1, 1, 1, 1) * path.states[0] + torch.tensordot(denoised, path.denoised, dims=1)
    torch.testing.assert_close(rebuilt, path.states)


def test_a_jump_is_one_euler_step_to_zero_noise() -> None:
    denoiser = OptimalDenoiser(points(0))
    path = trajectory(denoiser, points(1, 4), [*SIGMAS, 0.0], Euler())
    jump = ode_jump(denoiser, path.states, [*SIGMAS, 0.0])
    torch.testing.assert_close(jump[:-1], path.denoised)
    torch.testing.assert_close(jump[-1], path.states[-1])
    one = trajectory(denoiser, path.states[2] / SIGMAS[2], [SIGMAS[2], 0.0], Euler())
    torch.testing.assert_close(jump[2], one.states[-1])
    with pytest.raises(InputError, match="as many noise levels"):
        ode_jump(denoiser, path.states, SIGMAS)


def test_the_gaussian_of_full_rank_agrees_with_the_posterior_mean() -> None:
    data = points(2, 200)
    gaussian = fit_gaussian_score(data, 6)
    flat = data.flatten(1)
    covariance, mean = torch.cov(flat.T), flat.mean(0)
    x, sigma = points(3, 5), torch.tensor([0.1, 0.5, 1.0, 4.0, 30.0], dtype=torch.float64)
    found = gaussian(x, sigma)
    for row, level in enumerate(sigma):
        noisy = covariance + level**2 * torch.eye(6, dtype=torch.float64)
        expected = mean + covariance @ torch.linalg.solve(noisy, x[row].flatten() - mean)
        torch.testing.assert_close(found[row].flatten(), expected)


def test_the_gaussian_fitted_to_few_long_samples_is_that_of_the_covariance() -> None:
    data = points(4, 4)  # fewer samples than elements
    found = fit_gaussian_score(data, 3)
    values = torch.linalg.eigvalsh(torch.cov(data.flatten(1).T)).flip(0)[:3]
    assert found.values is not None
    torch.testing.assert_close(found.values[0], values)


def test_unit_gaussians_per_class_are_a_mixture_with_unit_variances() -> None:
    data, target = points(5, 30), torch.arange(30) % 3
    found = fit_gaussian_score(data, None, target)
    means = torch.stack([data[target == k].mean(0) for k in range(3)])
    mixture = GaussianMixture(torch.ones(3, dtype=torch.float64), means, torch.ones_like(means))
    x, sigma = points(6, 4), torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close(found(x, sigma), mixture(x, sigma))


def test_gaussians_of_full_rank_per_class_are_weighted_by_their_likelihood() -> None:
    data, target = points(7, 60), torch.arange(60) % 2
    found = fit_gaussian_score(data, 6, target)
    x, level = points(8, 3), 0.5
    groups = [data[target == k].flatten(1) for k in range(2)]
    noisy = [torch.cov(g.T) + level**2 * torch.eye(6, dtype=torch.float64) for g in groups]
    normals = [torch.distributions.MultivariateNormal(g.mean(0), c) for g, c in zip(groups, noisy, strict=True)]
    weights = torch.stack([normal.log_prob(x.flatten(1)) for normal in normals], 1).softmax(1)
    singles = torch.stack([fit_gaussian_score(g, 6)(x.flatten(1), torch.tensor(level)) for g in groups], 1)
    torch.testing.assert_close(found(x, torch.tensor(level)).flatten(1), (weights[..., None] * singles).sum(1))


def test_gaussians_that_cannot_be_fitted_are_refused() -> None:
    for rank in (0, 7, 20):
        with pytest.raises(InputError, match="rank"):
            fit_gaussian_score(points(0), rank)
    with pytest.raises(InputError, match="go together"):
        GaussianScore(torch.zeros(4), torch.eye(4))
    with pytest.raises(InputError, match="do not fit"):
        GaussianScore(torch.zeros(4), torch.eye(3), torch.ones(3))
    with pytest.raises(InputError, match="full covariances"):
        GaussianScore(torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3), torch.ones(2, 3))


def test_a_gaussian_start_for_gaussian_data_ends_where_the_model_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    model = fit_gaussian_score(torch.randn(100, 8, generator=generator, dtype=torch.float64), 8)
    path = trajectory(model, torch.randn(3, 8, generator=generator, dtype=torch.float64), SIGMAS, Euler())
    other = fit_gaussian_score(torch.randn(100, 8, generator=generator, dtype=torch.float64) + 3, 8)
    same, different = (gaussian_start(model, g, path, [1, 4]) for g in (model, other))
    assert same.end_error.max() < 1e-12
    assert same.score_error.max() < 1e-12
    assert (different.end_error > 1e-3).all()
    assert different.ends.shape == (2, 3, 8)


def test_a_model_does_not_deviate_from_itself() -> None:
    denoiser = OptimalDenoiser(points(0))
    found = score_deviation(denoiser, denoiser, points(1, 3), SIGMAS)
    for part in (found.states, found.outputs, found.on_learned, found.on_optimal):
        assert part.eq(0).all()


def test_a_constant_error_of_the_model_is_found_everywhere() -> None:
    denoiser = OptimalDenoiser(points(0))
    found = score_deviation(lambda x, s, c: denoiser(x, s) + 1, denoiser, points(1, 3), SIGMAS)
    torch.testing.assert_close(found.on_learned, torch.full_like(found.on_learned, 6**0.5))
    torch.testing.assert_close(found.on_optimal, torch.full_like(found.on_optimal, 6**0.5))
    assert found.states[0].eq(0).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_interpolations_meet_their_ends_and_keep_what_they_promise(seed: int) -> None:
    a, b = points(seed, 2), points(seed + 1, 2)
    share = torch.linspace(0, 1, 5, dtype=torch.float64)
    for between in (interpolate_linear, interpolate_spherical, interpolate_variance_preserving):
        found = between(a, b, share)
        assert found.shape == (5, *a.shape)
        torch.testing.assert_close(found[0], a)
        torch.testing.assert_close(found[-1], b)
    unit_a, unit_b = (x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for x in (a, b))
    arc = interpolate_spherical(unit_a, unit_b, share).flatten(2)
    torch.testing.assert_close(arc.norm(dim=-1), torch.ones(5, 2, dtype=torch.float64))
    steps = (arc[1:] * arc[:-1]).sum(-1)
    torch.testing.assert_close(steps, steps[:1].expand(4, 2))  # equal angles


def test_spherical_interpolation_of_a_latent_with_itself_stays() -> None:
    a = points(0, 2).float()
    torch.testing.assert_close(interpolate_spherical(a, a, torch.linspace(0, 1, 4)), a.expand(4, *a.shape))
    nearly = a * (1 + 1e-7)
    assert interpolate_spherical(a, nearly, torch.linspace(0, 1, 4)).isfinite().all()


def test_shares_outside_the_interval_and_different_latents_are_refused() -> None:
    a = points(0, 2)
    with pytest.raises(InputError, match="from 0 to 1"):
        interpolate_linear(a, a, torch.tensor([1.5]))
    with pytest.raises(InputError, match="one shape"):
        interpolate_linear(a, a[:1], torch.tensor([0.5]))
