"""GITS: costs against explicit jumps, paths against brute force, whole searches on closed forms."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.denoisers.closed_form import GaussianMixture
from stillroom.diffusion.geometry.metrics import chord_deviation
from stillroom.diffusion.gits import CostMatrix, cheapest_path, find_first_step, gits, jump_costs
from stillroom.diffusion.quality import rmse
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.sampling import sample, trajectory
from stillroom.diffusion.schedules import polynomial
from stillroom.diffusion.solvers import IPNDM, Euler, Heun
from stillroom.diffusion.warmup import random_classes, warmup
from stillroom.errors import FailureError, InputError


class Counted:
    """A denoiser that counts its evaluations, sample by sample."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.evaluations, self.conditions = denoiser, 0, []

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        self.evaluations += len(x)
        self.conditions.append(condition)
        return self.denoiser(x, sigma, None)


@pytest.fixture(scope="module")
def mixture() -> GaussianMixture:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(6, 1, 3, 3, generator=generator, dtype=torch.float64)
    return GaussianMixture(torch.ones(6, dtype=torch.float64), mean, torch.full_like(mean, 0.05))


def model_of(denoiser: Any, **options: Any) -> DenoisingModel:
    return DenoisingModel(denoiser=denoiser, shape=(1, 3, 3), name="mixture", **options)


def all_paths(n: int, steps: int) -> list[tuple[int, ...]]:
    return [(0, *inner, n - 1) for inner in itertools.combinations(range(1, n - 1), steps - 1)]


@pytest.mark.parametrize("metric", ["dev", "l1", "l2"])
def test_costs_are_those_of_explicit_euler_jumps(mixture: GaussianMixture, metric: Any) -> None:
    noise = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    levels = tuple(polynomial(9, 0.01, 20.0).tolist())
    way = trajectory(mixture, noise, levels, IPNDM(3))
    cost = jump_costs(way.states, way.derivatives, levels, metric=metric)
    x = way.states
    for i, j in itertools.combinations(range(9), 2):
        jump = x[i] + (levels[j] - levels[i]) * way.derivatives[i]
        if metric == "dev":
            expected = chord_deviation(jump, x[0], x[-1]) - chord_deviation(x[j], x[0], x[-1])
        else:
            expected = (jump - x[j]).flatten(1).norm(p=int(metric[1]), dim=1)
        assert float(cost[i, j]) == pytest.approx(float(expected.sum()), rel=1e-9, abs=1e-10), (i, j)
    assert not bool(cost.tril().any())


def test_the_costs_of_trajectories_that_do_not_move_are_zero() -> None:
    states = torch.ones(4, 2, 3)
    cost = jump_costs(states, torch.zeros(3, 2, 3), [4.0, 3.0, 2.0, 1.0])
    assert not bool(cost.any())


def test_jumps_of_a_straight_trajectory_cost_nothing() -> None:
    levels = [4.0, 2.0, 1.0, 0.5]
    slope = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = torch.stack([1 + level * slope for level in levels])
    for metric in ("dev", "l1", "l2"):
        cost = jump_costs(states, slope.expand(3, 2, 5), levels, metric=metric)  # type: ignore[arg-type]
        assert float(cost.abs().max()) < 1e-12


def test_an_unknown_metric_is_named() -> None:
    with pytest.raises(InputError, match="'l3'; it must be one of dev, l1, l2"):
        jump_costs(torch.zeros(2, 1, 1), torch.zeros(1, 1, 1), [2.0, 1.0], metric="l3")  # type: ignore[arg-type]


@settings(deadline=None, max_examples=50)
@given(
    cost=arrays(np.float64, (7, 7), elements=st.floats(-3, 3, allow_subnormal=False)),
    steps=st.integers(1, 6),
    coefficient=st.floats(0.5, 1.5),
)
def test_no_path_is_cheaper_than_the_one_found(cost: Any, steps: int, coefficient: float) -> None:
    def total(path: tuple[int, ...]) -> float:
        return sum(coefficient**m * cost[i, j] for m, (i, j) in enumerate(itertools.pairwise(path)))

    path = cheapest_path(cost, steps, coefficient=coefficient)
    assert path in all_paths(7, steps)
    assert total(path) <= min(map(total, all_paths(7, steps))) + 1e-9


def test_ties_go_to_the_earliest_point() -> None:
    assert cheapest_path(np.zeros((6, 6)), 3) == (0, 1, 2, 5)


@pytest.mark.parametrize("steps", [0, -1, 5, 100])
def test_impossible_budgets_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match=f"5 teacher points allow schedules of 1 to 4 steps, not {steps}"):
        cheapest_path(np.zeros((5, 5)), steps)


def test_bad_matrices_and_coefficients_are_refused() -> None:
    with pytest.raises(InputError, match="square"):
        cheapest_path(np.zeros((3, 4)), 1)
    with pytest.raises(InputError, match="finite"):
        cheapest_path(np.full((3, 3), np.nan), 1)
    with pytest.raises(InputError, match="coefficient of GITS is 0"):
        cheapest_path(np.zeros((3, 3)), 1, coefficient=0.0)


def test_a_search_with_the_defaults_costs_less_than_twenty_reference_trajectories(mixture: GaussianMixture) -> None:
    counted = Counted(mixture)
    costs = gits(model_of(counted))
    assert costs.evaluations == counted.evaluations == 256 * 60
    assert costs.evaluations < 20 * 1000
    assert len(costs.levels) == 61


def test_the_same_seed_gives_the_same_bits(mixture: GaussianMixture) -> None:
    first, second, other = (gits(model_of(mixture), count=24, batch_size=8, seed=seed) for seed in (3, 3, 4))
    assert first == second
    assert first.cost != other.cost


def test_batches_only_divide_the_work(mixture: GaussianMixture) -> None:
    levels = polynomial(11, 0.01, 20.0)
    noise = torch.randn(10, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = gits(model_of(mixture), levels=levels, noise=[noise])
    parts = gits(model_of(mixture), levels=levels, noise=noise.split(4))  # 4, 4 and 2
    np.testing.assert_allclose(parts.cost, whole.cost, rtol=1e-10, atol=1e-10)


def test_the_found_schedule_beats_the_usual_one_where_the_trajectories_bend(mixture: GaussianMixture) -> None:
    costs = gits(model_of(mixture), count=64, seed=1)
    noise = torch.randn(256, 1, 3, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    fine = sample(mixture, noise, polynomial(201, 0.002, 80.0), Heun())
    for steps in (5, 6, 8):
        found = Sampler(Euler(), costs.sigmas(steps))
        usual = Sampler(Euler(), tuple(polynomial(steps + 1, 0.002, 80.0).tolist()))
        assert found.nfe == steps
        assert rmse(found(mixture, noise), fine) < rmse(usual(mixture, noise), fine)


def test_conditions_are_drawn_and_reach_the_model(mixture: GaussianMixture) -> None:
    counted = Counted(mixture)
    gits(model_of(counted, classes=10), count=6, batch_size=4, condition=random_classes(10))
    sizes = {len(condition) for condition in counted.conditions}
    assert sizes == {4, 2}
    assert all(condition.dtype == torch.int64 for condition in counted.conditions)


def test_warm_up_noise_depends_on_the_seed_only_and_bad_counts_are_named() -> None:
    model = model_of(None)
    whole = torch.cat([noise for noise, _ in warmup(model, count=6, batch_size=6, seed=1)])
    again = torch.cat([noise for noise, _ in warmup(model, count=6, batch_size=6, seed=1)])
    assert torch.equal(whole, again)
    with pytest.raises(InputError, match="number of warm-up samples is 0"):
        next(warmup(model, count=0, batch_size=1, seed=0))
    with pytest.raises(InputError, match="batch size is 0"):
        gits(model, batch_size=0)


def test_a_model_that_returns_nan_is_named_with_the_step(mixture: GaussianMixture) -> None:
    def broken(x: Tensor, sigma: Tensor, condition: Any = None) -> Tensor:
        return x * (float("nan") if float(sigma) < 1 else 1.0)

    with pytest.raises((FailureError, InputError), match="not finite at evaluation"):
        gits(model_of(broken), count=2, batch_size=2)


def test_no_noise_is_an_error(mixture: GaussianMixture) -> None:
    with pytest.raises(InputError, match="at least one batch"):
        gits(model_of(mixture), noise=[])


def test_a_matrix_comes_back_from_its_file_bit_by_bit(mixture: GaussianMixture, tmp_path: Path) -> None:
    costs = gits(model_of(mixture), count=4, batch_size=4, levels=polynomial(8, 0.01, 10.0), metric="l2")
    costs.save(tmp_path / "costs.json")
    again = CostMatrix.load(tmp_path / "costs.json")
    assert again == costs
    assert again.about == costs.about
    assert [again.sigmas(k) for k in range(1, 8)] == [costs.sigmas(k) for k in range(1, 8)]


def spoil(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: content | changes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoil(format="other"), "holds no cost matrix"),
        (spoil(format_version=99), "format version 99"),
        (spoil(cost=[[0.0]]), "need a finite square cost matrix"),
        (spoil(levels=[1.0, 2.0]), "must fall strictly"),
        (spoil(levels="x"), "is damaged"),
        (lambda content: {key: value for key, value in content.items() if key != "metric"}, "is damaged"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, change: Any, said: str) -> None:
    file = tmp_path / "costs.json"
    CostMatrix((2.0, 1.0), ((0.0, 1.0), (0.0, 0.0))).save(file)
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(InputError, match=said) as caught:
        CostMatrix.load(file)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_json_or_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the cost matrix"):
        CostMatrix.load(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("levels")
    with pytest.raises(InputError, match="is no JSON"):
        CostMatrix.load(tmp_path / "text.json")


def test_an_inserted_first_step_costs_nothing_and_is_the_best_of_all_levels(mixture: GaussianMixture) -> None:
    levels = tuple(polynomial(21, 0.002, 80.0).tolist())
    noise = torch.randn(32, 1, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    fine = sample(mixture, noise, levels, IPNDM(4))
    plain = Sampler(IPNDM(3), (80.0, levels[6], levels[12], levels[16], 0.002))
    better = find_first_step(mixture, plain, levels, noise, fine)
    assert better is not None
    assert better.afs
    assert better.nfe == plain.nfe == 4

    def missed(level: float) -> float:
        tried = Sampler(IPNDM(3), (80.0, level, *plain.sigmas[1:]), afs=True)
        return float((tried(mixture, noise) - fine).flatten(1).norm(dim=1).mean())

    assert better.sigmas[1] == min(levels[1:6], key=missed)


def test_nothing_is_inserted_where_no_level_lies_between(mixture: GaussianMixture) -> None:
    noise = torch.randn(2, 1, 3, 3, dtype=torch.float64)
    plain = Sampler(Euler(), (80.0, 10.0, 0.002))
    assert find_first_step(mixture, plain, (80.0, 10.0, 1.0, 0.002), noise, noise) is None
