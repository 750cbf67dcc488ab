"""Solvers: their order, what they reproduce exactly, equality with a plain writing of the formulas, bad input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stillroom.diffusion.denoisers.closed_form import GaussianMixture
from stillroom.diffusion.sampler import Sampler, steps_for
from stillroom.diffusion.sampling import sample, trajectory
from stillroom.diffusion.schedules import align_your_steps, karras_zero, logsnr, polynomial
from stillroom.diffusion.solvers import DEIS, DPM2, IPNDM, IPNDMV, DPMpp, Euler, Heun, UniPC
from stillroom.diffusion.solvers.plan import Solver
from stillroom.errors import InputError

MULTISTEP: list[Solver] = [
    *(IPNDM(order) for order in (1, 2, 3, 4)),
    *(IPNDMV(order) for order in (1, 2, 3, 4)),
    *(DEIS(order, mode=mode) for order in (1, 2, 3, 4) for mode in ("tab", "rhoab")),
    *(DPMpp(order, predict=predict) for order in (1, 2, 3) for predict in ("denoised", "noise")),
    DPMpp(3, third_order="exact"),
    DPMpp(3, third_order="exact", lower_order_final=False, predict="noise"),
    *(UniPC(order, variant=variant) for order in (1, 2, 3) for variant in ("bh1", "bh2")),
    UniPC(3, predict="noise", lower_order_final=False),
]
ALL: list[Solver] = [Euler(), Heun(), DPM2(), DPM2(0.3), *MULTISTEP]
named = pytest.mark.parametrize("solver", ALL, ids=lambda solver: solver.name)

schedules = st.lists(st.floats(0.05, 2.0), min_size=1, max_size=7).map(
    lambda steps: tuple(50.0 * math.exp(-total) for total in itertools.accumulate([0.0, *steps]))
)


@pytest.fixture(scope="module")
def mixture() -> GaussianMixture:
    generator = torch.Generator().manual_seed(2)
    weight = torch.rand(4, generator=generator, dtype=torch.float64) + 0.5
    mean = 0.5 * torch.randn(4, 12, generator=generator, dtype=torch.float64)
    variance = 0.02 + 0.08 * torch.rand(4, 12, generator=generator, dtype=torch.float64)
    return GaussianMixture(weight / weight.sum(), mean, variance)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- orders -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def error(mixture: GaussianMixture) -> Callable[[Solver, int], float]:
    """Return the error of a solver after a number of steps, against Heun's method extrapolated to no step at all."""
    z = noise(3, 12)

    def run(solver: Solver, steps: int) -> Tensor:
        return sample(mixture, z, polynomial(steps + 1, 0.05, 20.0), solver)

    coarse, fine = run(Heun(), 600), run(Heun(), 1200)
    reference = fine + (fine - coarse) / 3
    return lambda solver, steps: (run(solver, steps) - reference).square().mean().sqrt().item()


def slope(error: Callable[[Solver, int], float], solver: Solver) -> float:
    return math.log2(error(solver, 80) / error(solver, 160))


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (Euler(), 1),
        (Heun(), 2),
        (DPM2(), 2),
        (IPNDM(2), 2),
        *((IPNDMV(order), order) for order in (2, 3, 4)),
        *((DEIS(order), order) for order in (2, 3, 4)),
        (DPMpp(2, lower_order_final=False), 2),
        (DPMpp(3, third_order="exact", lower_order_final=False), 3),
        (DPMpp(3, third_order="exact", lower_order_final=False, predict="noise"), 3),
        *((UniPC(order, variant=v, lower_order_final=False), order + 1) for order in (1, 2, 3) for v in ("bh1", "bh2")),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_a_rule_converges_with_its_order(error: Callable[[Solver, int], float], solver: Solver, order: int) -> None:
    assert slope(error, solver) >= order - 0.3


def test_published_forms_converge_more_slowly_than_their_order_says(error: Callable[[Solver, int], float]) -> None:
    assert slope(error, IPNDMV(4, "published")) < 2 < slope(error, IPNDMV(4)) - 1
    third = DPMpp(3, lower_order_final=False)
    assert slope(error, third) < 2.7 <= slope(error, DPMpp(3, third_order="exact", lower_order_final=False))
    assert slope(error, IPNDM(4)) < 3.3  # even weights on uneven steps


# --- exactness --------------------------------------------------------------------------------------------------------


@named
@given(sigmas=schedules, value=st.floats(-3, 3), to_zero=st.booleans())
@settings(max_examples=8, deadline=None)
def test_every_solver_is_exact_for_a_constant_denoiser(
    solver: Solver, sigmas: tuple[float, ...], value: float, to_zero: bool
) -> None:
    z = noise(2, 3)
    sigmas = (*sigmas, 0.0) if to_zero else sigmas
    result = sample(lambda x, sigma, condition: torch.full_like(x, value), z, sigmas, solver)
    exact = value + (sigmas[0] * z - value) * sigmas[-1] / sigmas[0]
    torch.testing.assert_close(result, exact, rtol=1e-9, atol=1e-9 * sigmas[0])


@named
@given(sigmas=schedules, scale=st.floats(0.5, 4.0), offset=st.floats(-2, 2))
@settings(max_examples=5, deadline=None)
def test_scaling_and_shifting_the_world_scales_and_shifts_the_samples(
    solver: Solver, sigmas: tuple[float, ...], scale: float, offset: float
) -> None:
    if solver.name.startswith("deis-tab"):
        scale = 1.0  # its time variable fixes a scale

    def denoiser(x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        return torch.tanh(x / (1 + sigma**2))

    def moved(x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        return scale * denoiser((x - offset) / scale, sigma / scale, condition) + offset

    z = noise(2, 3)
    result = sample(denoiser, z, sigmas, solver)
    other = tuple(scale * sigma for sigma in sigmas)
    result_moved = sample(moved, z + offset / other[0], other, solver)
    torch.testing.assert_close(result_moved, scale * result + offset, rtol=1e-6, atol=1e-6)


@given(sigmas=schedules, seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_euler_states_are_convex_combinations_of_the_start_and_the_outputs(
    sigmas: tuple[float, ...], seed: int
) -> None:
    outputs = list(noise(len(sigmas), 2, 3, seed=seed).unbind())
    queue = iter(outputs)
    went = trajectory(lambda x, sigma, condition: next(queue), noise(2, 3, seed=seed + 1), sigmas, Euler())
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        low, high = torch.minimum(went.states[i], outputs[i]), torch.maximum(went.states[i], outputs[i])
        assert ((went.states[i + 1] >= low - 1e-12) & (went.states[i + 1] <= high + 1e-12)).all()
        torch.testing.assert_close(went.states[i + 1], t / s * went.states[i] + (1 - t / s) * outputs[i])


@named
def test_a_step_to_zero_returns_the_denoiser_s_output(solver: Solver, mixture: GaussianMixture) -> None:
    sigmas = karras_zero(6, 0.01, 20.0)
    z, said = noise(3, 12).float(), []

    def denoiser(x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        said.append(mixture(x, sigma))
        return said[-1]

    assert torch.equal(sample(denoiser, z, sigmas, solver), said[-1])
    said.clear()
    assert torch.equal(sample(denoiser, z, sigmas[:-1], solver, denoise_to_zero=True), said[-1])


@pytest.mark.parametrize("solver", [IPNDM(1), IPNDMV(1), DEIS(1), DPMpp(1), DPMpp(1, "noise")])
def test_order_one_is_euler(solver: Solver, mixture: GaussianMixture) -> None:
    sigmas = polynomial(6, 0.01, 20.0)
    z = noise(3, 12)
    torch.testing.assert_close(sample(mixture, z, sigmas, solver), sample(mixture, z, sigmas, Euler()))


@given(sigmas=schedules, order=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_exact_ipndm_v_is_the_rhoab_mode_of_deis_and_integrates_polynomials(
    sigmas: tuple[float, ...], order: int
) -> None:
    assert IPNDMV(order).plan(sigmas) == DEIS(order, mode="rhoab").plan(sigmas)
    rows = DEIS(order, mode="rhoab").coefficients(sigmas)
    for i, row in enumerate(rows):
        for power in range(len(row)):
            integral = (sigmas[i + 1] ** (power + 1) - sigmas[i] ** (power + 1)) / (power + 1)
            parts = [weight * sigmas[i - j] ** power for j, weight in enumerate(row)]
            assert math.isclose(sum(parts), integral, rel_tol=1e-9, abs_tol=1e-9 * sum(map(abs, parts)))


def test_closed_forms_of_the_exact_weights_of_order_3() -> None:
    sigmas = (9.0, 7.0, 4.0, 3.5)
    h2, h1, h0 = (b - a for a, b in itertools.pairwise(sigmas))
    tau = 0.5 * (1 - h0 / (3 * (h0 + h1))) * h0 * (h0 + h1) / (h1 * (h1 + h2))
    expected = [1 + h0 / (2 * h1) + tau, -h0 / (2 * h1) - (1 + h1 / h2) * tau, tau * h1 / h2]
    row = DEIS(3, mode="rhoab").coefficients(sigmas)[2]
    torch.testing.assert_close(torch.tensor(row) / h0, torch.tensor(expected))


def test_published_ipndm_v_weights_on_even_steps_are_not_those_of_adams_and_bashforth() -> None:
    row = IPNDMV(4, "published").plan((5.0, 4.0, 3.0, 2.0, 1.0)).calls[3].update.weights
    weights = [-weight * sigma for weight, sigma in zip(row, (2.0, 3.0, 4.0, 5.0), strict=True)]
    torch.testing.assert_close(torch.tensor(weights), torch.tensor([2.375, -65 / 24, 43 / 24, -11 / 24]))


def test_gauss_and_published_quadrature_of_deis_agree_to_the_published_bias() -> None:
    sigmas = polynomial(8, 0.002, 80.0).tolist()
    pairs = zip(DEIS(4).coefficients(sigmas), DEIS(4, quadrature="published").coefficients(sigmas), strict=True)
    for exact, published in pairs:
        torch.testing.assert_close(torch.tensor(published), torch.tensor(exact), rtol=5e-3, atol=1e-6)
    for (s, t), row in zip(itertools.pairwise(sigmas), DEIS(4).coefficients(sigmas), strict=True):
        assert math.isclose(sum(row), t - s, rel_tol=1e-12)


# --- against a plain writing ------------------------------------------------------------------------------------------


def plain_dpmpp(denoiser: Any, x: Tensor, sigmas: tuple[float, ...], order: int, exact: bool) -> Tensor:
    """Write DPM-Solver++ with denoised samples as the paper does, without lowering the order at the end."""
    lam = [-math.log(sigma) for sigma in sigmas]
    m: list[Tensor] = []
    for i, (s, t) in enumerate(itertools.pairwise(sigmas)):
        m.insert(0, denoiser(x, torch.tensor(s, dtype=x.dtype)))
        h = lam[i + 1] - lam[i]
        phi1 = math.expm1(-h)
        phi2 = phi1 / h + 1
        phi3 = phi2 / h - 0.5
        p = min(order, i + 1)
        x = t / s * x - phi1 * m[0]
        if p == 2:
            x = x - phi1 / 2 * (m[0] - m[1]) / ((lam[i] - lam[i - 1]) / h)
        if p == 3:
            r0, r1 = (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h
            a, b = (m[0] - m[1]) / r0, (m[1] - m[2]) / r1
            first, second = a + r0 / (r0 + r1) * (a - b), (a - b) / (r0 + r1)
            x = x + phi2 * first - phi3 * second * (2 if exact else 1)
    return x


@given(sigmas=schedules, order=st.sampled_from([1, 2, 3]), exact=st.booleans())
@settings(max_examples=20, deadline=None)
def test_dpmpp_equals_the_formulas_of_the_paper(sigmas: tuple[float, ...], order: int, exact: bool) -> None:
    def denoiser(x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        return torch.tanh(x / (1 + sigma**2))

    z = noise(2, 3)
    third = "exact" if exact else "published"
    solver = DPMpp(order, lower_order_final=False, third_order=third, max_ratio=None)
    expected = plain_dpmpp(denoiser, z * sigmas[0], sigmas, order, exact)
    torch.testing.assert_close(sample(denoiser, z, sigmas, solver), expected, rtol=1e-9, atol=1e-9)


def test_heun_and_dpm2_equal_two_plain_stages(mixture: GaussianMixture) -> None:
    z, (s, t), r = noise(3, 12), (8.0, 3.0), 0.3

    def eps(x: Tensor, sigma: float) -> Tensor:
        return (x - mixture(x, torch.tensor(sigma, dtype=x.dtype))) / sigma

    x = z * s
    first = eps(x, s)
    heun = x + (t - s) * (first + eps(x + (t - s) * first, t)) / 2
    torch.testing.assert_close(sample(mixture, z, (s, t), Heun()), heun)
    m = t**r * s ** (1 - r)
    dpm2 = x + (t - s) * (eps(x + (m - s) * first, m) / (2 * r) + (1 - 1 / (2 * r)) * first)
    torch.testing.assert_close(sample(mixture, z, (s, t), DPM2(r)), dpm2)


# --- budgets, orders on uneven steps, storage -------------------------------------------------------------------------


@named
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_evaluations_are_counted_and_budgeted(solver: Solver, steps: int, mixture: GaussianMixture) -> None:
    calls = 0

    def counted(x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return mixture(x, sigma)

    sampler = Sampler(solver, tuple(logsnr(steps + 1, 0.01, 20.0).tolist()))
    sampler(counted, noise(2, 12))
    assert calls == sampler.nfe == steps * (2 if isinstance(solver, Heun | DPM2) else 1)
    for afs, final in itertools.product((False, True), repeat=2):
        budget = sampler.nfe - afs + final
        assert steps_for(solver, budget, afs=afs, denoise_to_zero=final) == steps


def test_a_budget_that_no_number_of_steps_costs_is_refused_with_those_next_to_it() -> None:
    with pytest.raises(InputError, match="heun cannot spend 5 evaluations; use 4 or 6"):
        steps_for(Heun(), 5)
    with pytest.raises(InputError, match="cannot spend 1 evaluations; use 2"):
        steps_for(Heun(), 1)
    with pytest.raises(InputError, match="euler cannot spend 0 evaluations; use 1"):
        steps_for(Euler(), 0)
    with pytest.raises(InputError, match="euler with denoise_to_zero cannot spend 1 evaluations; use 2"):
        steps_for(Euler(), 1, denoise_to_zero=True)


@pytest.mark.parametrize("kind", [IPNDM, IPNDMV, DEIS, DPMpp, UniPC])
def test_the_order_falls_where_a_step_is_much_longer_than_the_ones_before(kind: Any) -> None:
    sigmas = (10.0, 9.9, 9.8, 9.7, 1.0, 0.1, 0.01)
    keep = {"lower_order_final": False} if kind in (DPMpp, UniPC) else {}

    def depths(max_ratio: float | None) -> list[int]:
        return [len(call.update.weights) for call in kind(3, max_ratio=max_ratio, **keep).plan(sigmas).calls]

    assert depths(None) == depths(1e9) == [1, 2, 3, 3, 3, 3]
    assert depths(4.0)[:4] == [1, 2, 3, 1]


def test_the_default_cap_leaves_the_usual_schedules_alone() -> None:
    made = [kind(n + 1, 0.002, 80.0) for kind in (polynomial, logsnr, karras_zero) for n in (3, 5, 8, 20)]
    for sigmas in [*made, *(align_your_steps(11, model=model) for model in ("sd15", "sdxl"))]:
        for kind in (DPMpp, UniPC):
            assert kind().max_ratio == 3.0
            assert kind(3).plan(sigmas.tolist()) == kind(3, max_ratio=None).plan(sigmas.tolist())


@named
def test_a_solver_is_rebuilt_from_its_file(solver: Solver, tmp_path: Path) -> None:
    sampler = Sampler(solver, (20.0, 3.0, 0.1), afs=True)
    sampler.save(tmp_path / "schedule.json")
    assert Sampler.load(tmp_path / "schedule.json") == sampler


def test_names_tell_solvers_apart() -> None:
    assert (
        len({solver.name for solver in ALL}) >= len(ALL) - 1
    )  # the two exact third-order rules differ at the end only


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IPNDM(5), "ipndm: order is 5; choose one of 1, 2, 3, 4"),
        (lambda: IPNDM(True), "ipndm: order is True"),
        (lambda: IPNDMV(0), "ipndm_v: order is 0"),
        (lambda: IPNDMV(2, "rough"), "coefficients is 'rough'; choose one of exact, published"),
        (lambda: DEIS(2, mode="log"), "mode is 'log'; choose one of tab, rhoab"),
        (lambda: DPMpp(4), "dpmpp: order is 4; choose one of 1, 2, 3"),
        (lambda: DPMpp("3"), "order is '3'"),
        (lambda: DPMpp(2, lower_order_final=1), "lower_order_final is 1"),
        (lambda: UniPC(2, variant="bh3"), "variant is 'bh3'; choose one of bh1, bh2"),
        (lambda: UniPC(2, max_ratio=0.5), "max_ratio is 0.5; it must be None or a number of at least 1"),
        (lambda: DPM2(0.0), "r is 0.0; it must be above 0 and at most 1"),
        (lambda: DPM2(float("nan")), "r is nan"),
    ],
)
def test_options_out_of_range_are_refused(make: Callable[[], Solver], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@named
def test_a_nan_of_the_denoiser_names_the_evaluation(solver: Solver) -> None:
    def broken(x: Tensor, sigma: Tensor, condition: Any) -> Tensor:
        return x * 0 if sigma > 5 else x * float("nan")

    with pytest.raises(InputError, match=r"not finite at evaluation \d of \d \(step \d, sigma (?!9|20)"):
        sample(broken, noise(1, 2), (20.0, 9.0, 4.0, 1.0), solver)


def test_an_output_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"returned shape \(1, 4\) for samples of shape \(1, 2\)"):
        sample(lambda x, sigma, condition: torch.cat([x, x], 1), noise(1, 2), (20.0, 1.0), IPNDM(2))


def test_a_model_in_half_precision_leaves_the_state_in_single() -> None:
    for solver in (Euler(), IPNDM(2), DPMpp(2)):
        result = sample(lambda x, s, c: torch.zeros_like(x).bfloat16(), noise(1, 2).float(), (20.0, 2.0, 1.0), solver)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, noise(1, 2).float())
