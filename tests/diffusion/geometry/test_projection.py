"""Projection, curvature and alignment of trajectories."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.diffusion.geometry.calibration import calibrate, central, procrustes
from stillroom.diffusion.geometry.curvature import curvature_torsion
from stillroom.diffusion.geometry.projection import project3d
from stillroom.errors import InputError


def rotation(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


def helix(points: int, radius: float, rise: float) -> torch.Tensor:
    t = torch.linspace(0, 4, points, dtype=torch.float64)
    return torch.stack([radius * t.cos(), radius * t.sin(), rise * t], dim=1)[:, None]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_long_and_short_samples_project_alike(seed: int) -> None:
    # More elements than points go through the Gram matrix, fewer through the singular values.
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 2, 9, generator=generator, dtype=torch.float64).cumsum(0)
    wide = torch.cat([x, torch.zeros(12, 2, 40, dtype=torch.float64)], dim=2)
    short, long = project3d(x), project3d(wide)
    for name in ("coordinates", "explained_orthogonal", "explained_full", "reconstruction_error"):
        torch.testing.assert_close(getattr(short, name), getattr(long, name), rtol=1e-6, atol=1e-7)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_projection_of_a_curve_in_three_dimensions_keeps_all_distances(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(10, 1, 3, generator=generator, dtype=torch.float64).cumsum(0)
    embedded = torch.nn.functional.pad(x, (0, 20)) @ rotation(23, generator)
    found = project3d(embedded)
    torch.testing.assert_close(
        torch.cdist(found.coordinates[:, 0], found.coordinates[:, 0]), torch.cdist(x[:, 0], x[:, 0])
    )
    assert found.reconstruction_error[2].max() < 1e-6
    torch.testing.assert_close(found.axes[0] @ found.axes[0].T, torch.eye(3, dtype=torch.float64))


def test_the_middle_point_fixes_the_signs() -> None:
    generator = torch.Generator().manual_seed(0)
    middle = project3d(torch.randn(21, 8, 3, 4, 4, generator=generator).cumsum(0)).coordinates[10]
    assert (middle[:, 0] <= 0).all()
    assert (middle[:, 1] >= 0).all()
    assert (middle[:, 2] <= 0).all()


def test_a_straight_trajectory_is_projected_on_its_chord() -> None:
    x = torch.linspace(1, 0, 7, dtype=torch.float64)[:, None, None] * torch.ones(1, 1, 16, dtype=torch.float64)
    found = project3d(x)
    torch.testing.assert_close(found.coordinates[:, 0, 0].abs(), 4 * torch.linspace(1, 0, 7, dtype=torch.float64))
    assert found.coordinates[..., 1:].abs().max() < 1e-12
    torch.testing.assert_close(found.axes[0] @ found.axes[0].T, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("points", [2, 3])
def test_very_short_trajectories_are_projected(points: int) -> None:
    found = project3d(torch.randn(points, 2, 5, generator=torch.Generator().manual_seed(points)))
    assert found.coordinates.shape == (points, 2, 3)
    assert found.reconstruction_error.shape == (4, 2, points)
    assert found.coordinates.isfinite().all()


def test_trajectories_without_chord_or_room_are_refused() -> None:
    with pytest.raises(InputError, match="no chord"):
        project3d(torch.ones(5, 1, 8))
    with pytest.raises(InputError, match="three elements"):
        project3d(torch.ones(5, 1, 2))


@pytest.mark.parametrize(("radius", "rise"), [(1.0, 0.3), (2.0, -0.5), (50.0, 10.0)])
def test_curvature_and_torsion_of_a_helix_are_known(radius: float, rise: float) -> None:
    found = curvature_torsion(helix(400, radius, rise), window=21)
    square = radius**2 + rise**2
    assert found.curvature.shape == found.torsion.shape == (400, 1)
    torch.testing.assert_close(found.curvature, torch.full_like(found.curvature, radius / square), rtol=2e-2, atol=0)
    torch.testing.assert_close(found.torsion, torch.full_like(found.torsion, rise / square), rtol=5e-2, atol=0)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-3, 1e3))
def test_curvature_scales_inversely(scale: float) -> None:
    curve = helix(60, 1.0, 0.4)
    one, other = curvature_torsion(curve), curvature_torsion(scale * curve)
    torch.testing.assert_close(other.curvature * scale, one.curvature, rtol=1e-6, atol=0)
    torch.testing.assert_close(other.torsion * scale, one.torsion, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(other.arc_length, scale * one.arc_length)


def test_a_mirrored_curve_has_the_opposite_torsion() -> None:
    curve = helix(60, 1.0, 0.4)
    mirrored = curve * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(curvature_torsion(mirrored).torsion, -curvature_torsion(curve).torsion)


def test_a_straight_line_has_no_torsion_and_a_resting_point_no_curvature() -> None:
    line = torch.linspace(0, 5, 30, dtype=torch.float64)[:, None, None] * torch.tensor([1.0, 2.0, 3.0])
    found = curvature_torsion(line)
    assert found.curvature.abs().max() < 1e-9
    assert found.torsion.isnan().all()
    assert curvature_torsion(torch.zeros(30, 2, 3)).curvature.isnan().all()


@pytest.mark.parametrize("window", [4, 10, 3, 33])
def test_impossible_windows_are_refused(window: int) -> None:
    with pytest.raises(InputError, match="window"):
        curvature_torsion(helix(31, 1.0, 1.0), window=window)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_procrustes_finds_the_rotation_that_was_applied(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(12, size, generator=generator, dtype=torch.float64)
    turned = rotation(size, generator)
    torch.testing.assert_close(procrustes(source, source @ turned), turned)


def test_calibration_in_the_plane_leaves_the_chord_and_undoes_a_turn() -> None:
    generator = torch.Generator().manual_seed(1)
    curve = torch.randn(15, 1, 3, generator=generator, dtype=torch.float64)
    angle = 0.7
    turn = torch.tensor(
        [[1, 0, 0], [0, math.cos(angle), math.sin(angle)], [0, -math.sin(angle), math.cos(angle)]], dtype=torch.float64
    )
    both = torch.cat([curve, curve @ turn], dim=1)
    found = calibrate(both)
    torch.testing.assert_close(found[:, 1], curve[:, 0])
    torch.testing.assert_close(calibrate(both @ rotation(3, generator), curve[:, 0], plane=False)[:, 1], curve[:, 0])


def test_the_outermost_trajectories_are_left_out() -> None:
    heights = torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0])
    coordinates = heights[None, :, None].expand(3, 5, 3)
    assert central(coordinates, share=0.6).tolist() == [2, 3, 4]
    assert central(coordinates, share=1.0).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="share"):
        central(coordinates, share=0.0)
