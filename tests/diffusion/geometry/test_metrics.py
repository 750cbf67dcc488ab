"""Norms, distances and deviations of trajectories."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.diffusion.geometry.metrics import chord_deviation, deviation, trajectory_metrics
from stillroom.errors import InputError


def walk(seed: int, points: int = 6, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(points, batch, 2, 3, generator=generator, dtype=torch.float64).cumsum(0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.1, 100))
def test_deviation_ignores_a_shift_and_scales_with_the_trajectory(seed: int, scale: float) -> None:
    x = walk(seed)
    torch.testing.assert_close(deviation(scale * x + x[2]), scale * deviation(x), rtol=1e-8, atol=1e-8)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_deviation_is_the_height_of_the_triangle_with_the_chord(seed: int) -> None:
    x = walk(seed).flatten(2)
    a, b, c = x[1:-1] - x[0], x[-1] - x[1:-1], (x[-1] - x[0]).norm(dim=-1)
    # Heron's area, twice, over the base.
    sides = a.norm(dim=-1), b.norm(dim=-1), c.expand(4, 3)
    half = sum(sides) / 2
    area = (half * (half - sides[0]) * (half - sides[1]) * (half - sides[2])).clamp_min(0).sqrt()
    torch.testing.assert_close(deviation(x), (2 * area / c).T, rtol=1e-5, atol=1e-6)


def test_points_on_the_chord_do_not_deviate() -> None:
    start, end = torch.zeros(2, 3), torch.ones(2, 3)
    points = torch.linspace(-1, 2, 7)[:, None, None] * (end - start)
    torch.testing.assert_close(chord_deviation(points, start, end), torch.zeros(7, 2), atol=1e-6, rtol=0)


def test_points_may_have_several_leading_sizes() -> None:
    x = walk(1)
    whole = chord_deviation(x.expand(4, *x.shape), x[0], x[-1])
    assert whole.shape == (4, 6, 3)
    torch.testing.assert_close(whole[2, 1:-1].T, deviation(x))


def test_a_trajectory_that_ends_where_it_starts_has_no_deviation_and_warns() -> None:
    x = walk(2)
    x[-1, 1] = x[0, 1]
    with pytest.warns(UserWarning, match="ends where it starts"):
        found = deviation(x)
    assert found[1].eq(0).all()
    assert found[0].gt(0).all()


def test_two_points_have_no_inner_deviation() -> None:
    assert deviation(walk(3, points=2)).shape == (3, 0)


def test_one_sample_and_one_step_are_enough() -> None:
    x = walk(4, points=2, batch=1)
    found = trajectory_metrics(x, x[1:], x[:-1])
    assert found.norm.shape == (2, 1)
    assert found.deviation.shape == found.deviation_denoised.shape == (0, 1)


def test_wrong_shapes_are_named() -> None:
    x = walk(5)
    with pytest.raises(InputError, match="one output and one derivative less"):
        trajectory_metrics(x, x, x)
    with pytest.raises(InputError, match="at least two points"):
        deviation(x[:1])
    with pytest.raises(InputError, match="must end in the shape"):
        chord_deviation(x, x[0, :2], x[-1, :2])
