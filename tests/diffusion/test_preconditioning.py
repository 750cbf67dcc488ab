"""Preconditioned networks: a network that is right makes a denoiser that is right, whatever it predicts."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.diffusion.denoisers.closed_form import GaussianMixture
from stillroom.diffusion.denoisers.discrete_preconditioning import IDDPM, LDM, Discrete
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
from stillroom.errors import InputError

ABAR = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
KINDS: dict[str, Preconditioning] = {
    "edm": EDM(),
    "cm": CM(sigma_data=1.0),
    "vp": VP(),
    "ve": VE(),
    "iddpm": IDDPM(),
    "v_continuous": VContinuous(),
    "flow": Flow(noise_scale=1000.0),
    "discrete_eps": Discrete(ABAR),
    "discrete_v": Discrete(ABAR, "v_prediction"),
    "discrete_x0": Discrete(ABAR, "sample"),
    "discrete_eps_whole": Discrete(ABAR, quantize=True),
    "ldm": LDM(ABAR),
}
# The output of a network in terms of the clean sample x0, the noise z and the noise level s.
TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "vp": lambda x0, z, s: z,
    "ve": lambda x0, z, s: -z,  # s times the score
    "iddpm": lambda x0, z, s: z,
    "v_continuous": lambda x0, z, s: (z - s * x0) / (s**2 + 1).sqrt(),
    "flow": lambda x0, z, s: z - x0,
    "discrete_eps": lambda x0, z, s: z,
    "discrete_v": lambda x0, z, s: (z - s * x0) / (s**2 + 1).sqrt(),
    "discrete_x0": lambda x0, z, s: x0,
    "ldm": lambda x0, z, s: z,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def sample(seed: int, kind: Preconditioning) -> tuple[Tensor, Tensor, Tensor]:
    """Four clean samples, their noise and noise levels within the model's range, float64."""
    generator = torch.Generator().manual_seed(seed)
    x0, z = torch.randn(2, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
    low, high = math.log(kind.sigma_min), math.log(kind.sigma_max)
    return x0, z, (low + (high - low) * torch.rand(4, generator=generator, dtype=torch.float64)).exp()


@pytest.mark.parametrize("kind", TARGETS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=10)
def test_a_network_that_predicts_its_target_gives_the_clean_sample(kind: str, seed: int) -> None:
    x0, z, sigma = sample(seed, KINDS[kind])
    s = sigma.view(4, 1, 1, 1)
    denoiser = Preconditioned(lambda scaled, noise, condition: TARGETS[kind](x0, z, s), KINDS[kind])
    scale = 1 + float(sigma.max())
    torch.testing.assert_close(denoiser(x0 + s * z, sigma), x0, rtol=0, atol=1e-13 * scale)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=10)
def test_inputs_and_targets_of_edm_have_unit_variance(seed: int) -> None:
    """The network's target (x0 - c_skip x) / c_out, over data of the standard deviation sigma_data."""
    sigma = torch.rand(100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10 + 0.01
    c_skip, c_out, c_in, _ = EDM(sigma_data=0.5).scalings(sigma)
    torch.testing.assert_close(c_in**2 * (0.25 + sigma**2), torch.ones_like(sigma))
    target = ((1 - c_skip) ** 2 * 0.25 + c_skip**2 * sigma**2) / c_out**2
    torch.testing.assert_close(target, torch.ones_like(sigma))


@every_kind
def test_noise_levels_of_any_form_give_the_same(kind: str) -> None:
    x0, z, sigma = sample(0, KINDS[kind])
    x = x0 + sigma.view(4, 1, 1, 1) * z
    denoiser = Preconditioned(lambda scaled, noise, condition: scaled.tanh() + noise.view(4, 1, 1, 1), KINDS[kind])
    torch.testing.assert_close(denoiser(x, sigma.view(4, 1, 1, 1)), denoiser(x, sigma), rtol=0, atol=0)
    shared = [denoiser(x, form) for form in (sigma[0], sigma[:1], sigma[0].expand(4))]
    for other in shared[1:]:
        torch.testing.assert_close(other, shared[0], rtol=1e-13, atol=1e-13)


@every_kind
def test_single_precision_is_close_to_double(kind: str) -> None:
    x0, z, _ = sample(1, KINDS[kind])
    low, high = KINDS[kind].sigma_min, KINDS[kind].sigma_max
    for sigma in (low * 1.01, (low * high) ** 0.5, high * 0.99):
        x, level = x0 + sigma * z, torch.tensor(sigma, dtype=torch.float64)
        for exact, single in zip(
            network_input(KINDS[kind], x, level), network_input(KINDS[kind], x.float(), level), strict=True
        ):
            torch.testing.assert_close(single.double(), exact, rtol=2e-5, atol=2e-4)


@every_kind
def test_the_range_is_one_and_the_noise_number_rises_over_it(kind: str) -> None:
    preconditioning = KINDS[kind]
    assert 0 < preconditioning.sigma_min < preconditioning.sigma_max < math.inf
    low, high = math.log(preconditioning.sigma_min), math.log(preconditioning.sigma_max)
    noise = preconditioning.scalings(torch.linspace(low, high, 50, dtype=torch.float64).exp()).c_noise
    steps = noise.diff()
    assert bool((steps >= -1e-9).all())
    assert float(steps.sum()) > 0


@pytest.mark.parametrize("kind", ["vp", "ldm"])
@given(log_sigma=st.floats(math.log(0.002), math.log(150)))
@settings(deadline=None, max_examples=30)
def test_time_and_noise_level_are_inverse(kind: str, log_sigma: float) -> None:
    preconditioning = KINDS[kind]
    assert isinstance(preconditioning, VP | LDM)
    sigma = torch.tensor(math.exp(log_sigma), dtype=torch.float64)
    time = preconditioning.time(sigma)
    if time > 0:  # the first segment of a table, extended, has a time of no noise
        torch.testing.assert_close(preconditioning.sigma(time), sigma, rtol=1e-9, atol=1e-12)


def test_the_levels_of_a_table_have_whole_numbers() -> None:
    discrete, latent = Discrete(ABAR), LDM(ABAR)
    sigmas = torch.tensor(discrete.sigmas, dtype=torch.float64)
    numbers = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(discrete.index(sigmas), numbers, rtol=0, atol=1e-8)
    torch.testing.assert_close(latent.scalings(sigmas).c_noise, numbers, rtol=0, atol=1e-8)
    torch.testing.assert_close(sigmas, ((1 - ABAR) / ABAR).sqrt())
    middle = (sigmas[10] * sigmas[11]).sqrt()
    torch.testing.assert_close(discrete.index(middle), torch.tensor(10.5, dtype=torch.float64))
    beyond = torch.tensor([sigmas[0] / 2, sigmas[-1] * 2])
    assert discrete.index(beyond).tolist() == [0, 999]


def test_iddpm_takes_the_nearest_level() -> None:
    iddpm = IDDPM()
    levels = iddpm.levels
    assert (len(levels), float(levels[-1])) == (1001, 0.0)
    assert bool((levels.diff() < 0).all())
    sigma = torch.tensor([0.003, 0.4, 12.0, 700.0], dtype=torch.float64)
    assert iddpm.index(sigma).tolist() == (levels[:, None] - sigma).abs().argmin(0).tolist()


def test_a_mixtures_noise_prediction_makes_the_mixtures_denoiser() -> None:
    """A network trained to perfection on a mixture, asked through each of the noise-predicting preconditionings."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64)
    mixture = GaussianMixture(torch.ones(3), mean, torch.full_like(mean, 0.1))
    vp = VP()

    def network(scaled: Tensor, noise: Tensor, condition: object) -> Tensor:
        sigma = vp.sigma(noise / 999).view(-1, 1, 1, 1)
        x = scaled * (sigma**2 + 1).sqrt()
        return (x - mixture(x, sigma)) / sigma

    x = torch.randn(4, 1, 2, 2, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.02, 0.5, 3.0, 70.0], dtype=torch.float64)
    torch.testing.assert_close(Preconditioned(network, vp)(x, sigma), mixture(x, sigma), rtol=1e-9, atol=1e-9)


def test_the_condition_reaches_the_network_and_variances_are_left_out() -> None:
    seen = []

    def network(scaled: Tensor, noise: Tensor, condition: object) -> Tensor:
        seen.append((noise.shape, condition))
        return torch.cat([scaled, scaled + 1], dim=1)

    x = torch.ones(2, 3, 4, 4)
    assert Preconditioned(network, VP())(x, torch.tensor(1.0), "a cat").shape == x.shape
    assert seen == [((2,), "a cat")]


@every_kind
def test_gradients_reach_the_noise_level(kind: str) -> None:
    x0, z, sigma = sample(2, KINDS[kind])
    sigma.requires_grad_()
    denoiser = Preconditioned(lambda scaled, noise, condition: scaled.tanh(), KINDS[kind])
    (gradient,) = torch.autograd.grad(denoiser(x0 + 3 * z, sigma).square().sum(), sigma)
    assert bool(gradient.isfinite().all())
    assert bool((gradient != 0).all())


def test_a_network_with_parameters_is_a_part() -> None:
    network = torch.nn.Conv2d(1, 1, 1)
    denoiser = Preconditioned(lambda scaled, noise, condition: network(scaled), EDM())
    assert not list(denoiser.parameters())

    class Network(torch.nn.Conv2d):
        def forward(self, scaled: Tensor, noise: Tensor, condition: object) -> Tensor:
            return super().forward(scaled)

    assert len(list(Preconditioned(Network(1, 1, 1), EDM()).parameters())) == 2


@pytest.mark.parametrize("kind", ["edm", "vp", "iddpm", "discrete_eps", "ldm", "flow"])
def test_it_compiles_whole(kind: str) -> None:
    denoiser = Preconditioned(lambda scaled, noise, condition: scaled * noise.view(-1, 1, 1, 1), KINDS[kind])
    x, sigma = torch.ones(2, 3, 4, 4), torch.tensor([0.1, 1.0])
    compiled = torch.compile(denoiser, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, sigma), denoiser(x, sigma))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Discrete(torch.ones(1)), "at least two numbers"),
        (lambda: Discrete(torch.tensor([0.5, 0.0])), "between 0 and 1 and fall"),
        (lambda: LDM(torch.tensor([0.5, 0.9])), "between 0 and 1 and fall"),
        (lambda: LDM(torch.tensor([0.9, float("nan")])), "between 0 and 1 and fall"),
        (lambda: Discrete(ABAR, "eps"), "prediction must be"),
        (
            lambda: Preconditioned(lambda x, noise, c: x[:, :1], EDM())(torch.ones(2, 3, 4, 4), torch.tensor(1.0)),
            r"\[2, 3, 4, 4\] with \[2, 1, 4, 4\]",
        ),
        (
            lambda: Preconditioned(lambda x, noise, c: x, EDM())(torch.ones(2, 3, 4, 4), torch.ones(3)),
            "2 samples but 3 noise levels",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
