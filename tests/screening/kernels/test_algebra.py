"""Repair, centring, normalisation and products of kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.screening.kernels.algebra import (
    centre_kernel,
    combine_kernels,
    kron_apply,
    normalise_kernel,
    pairwise_kernel,
    psd_repaired,
    smallest_eigenvalue,
)

seeds = st.integers(0, 2**32 - 1)


def symmetric(seed: int) -> np.ndarray:
    """Random and, from two rows on, rarely definite."""
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(generator.integers(1, 9),) * 2)
    return matrix + matrix.T


def definite(seed: int) -> np.ndarray:
    matrix = symmetric(seed)
    return matrix @ matrix.T + np.eye(len(matrix))


@settings(deadline=None)
@given(seeds, st.sampled_from(["clip", "shift", "flip"]))
def test_a_repaired_kernel_has_no_negative_eigenvalue(seed: int, how: Any) -> None:
    kernel = symmetric(seed)
    before = kernel.copy()
    repaired = psd_repaired(kernel, how)
    assert smallest_eigenvalue(repaired) > -1e-10
    np.testing.assert_allclose(repaired, repaired.T, atol=1e-12)
    assert (kernel == before).all()


@settings(deadline=None)
@given(seeds, st.sampled_from(["clip", "shift", "flip", "none"]))
def test_repair_leaves_definite_kernels_as_they_are(seed: int, how: Any) -> None:
    kernel = definite(seed)
    assert (psd_repaired(kernel, how) == kernel).all()


def test_none_leaves_everything_as_it_is() -> None:
    assert psd_repaired(-np.eye(2), "none").tolist() == [[-1, 0], [0, -1]]


@settings(deadline=None)
@given(seeds)
def test_clip_is_nearer_than_other_definite_matrices(seed: int) -> None:
    kernel = symmetric(seed)
    clipped = psd_repaired(kernel, "clip")
    distance = np.linalg.norm(clipped - kernel)
    generator = np.random.default_rng(seed + 1)
    rivals = [psd_repaired(kernel, "flip"), psd_repaired(kernel, "shift")]
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        factor = generator.normal(size=kernel.shape)
        rivals.append(clipped + scale * factor @ factor.T)
        vectors = np.linalg.eigh(clipped + scale * (factor + factor.T))[1]
        values = np.maximum(np.diagonal(vectors.T @ kernel @ vectors), 0)  # the best of these directions
        rivals.append((vectors * values) @ vectors.T)
    assert all(distance <= np.linalg.norm(rival - kernel) + 1e-9 for rival in rivals)


@settings(deadline=None)
@given(seeds)
def test_shift_changes_the_diagonal_alone_and_flip_keeps_the_magnitudes(seed: int) -> None:
    kernel = symmetric(seed)
    moved = psd_repaired(kernel, "shift") - kernel
    np.testing.assert_allclose(moved, moved[0, 0] * np.eye(len(kernel)), atol=1e-12)
    values = np.sort(np.abs(np.linalg.eigvalsh(kernel)))
    np.testing.assert_allclose(np.linalg.eigvalsh(psd_repaired(kernel, "flip")), values, atol=1e-9)


def test_an_unknown_repair_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'clip'"):
        psd_repaired(np.eye(2), "clipp")  # type: ignore[arg-type]


@settings(deadline=None)
@given(seeds)
def test_centring_is_the_kernel_of_centred_features_and_twice_is_once(seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(6, 3))
    centred = centre_kernel(features @ features.T)
    moved = features - features.mean(axis=0)
    np.testing.assert_allclose(centred, moved @ moved.T, atol=1e-12)
    np.testing.assert_allclose(centre_kernel(centred), centred, atol=1e-12)
    np.testing.assert_allclose(centred.sum(axis=0), 0, atol=1e-12)


@settings(deadline=None)
@given(seeds)
def test_a_normalised_kernel_is_the_cosine_whatever_the_scale_of_the_features(seed: int) -> None:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(5, 4))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    scaled = features * generator.uniform(0.1, 10, size=(5, 1))
    np.testing.assert_allclose(normalise_kernel(scaled @ scaled.T), unit @ unit.T, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_kernel_that_cannot_be_normalised_is_refused_with_its_row(value: float) -> None:
    with pytest.raises(InputError, match=r"^targets: row 1 \(counted from 0\)"):
        normalise_kernel(np.diag([1.0, value, 1.0]), "targets")


@settings(deadline=None)
@given(seeds)
def test_kron_apply_and_pairwise_kernel_agree_with_numpy_kron(seed: int) -> None:
    generator = np.random.default_rng(seed)
    m, n, k, other = generator.integers(1, 5, size=4)
    drugs, targets = generator.normal(size=(m, m)), generator.normal(size=(n, n))
    coefficients = generator.normal(size=(m, n))
    whole = np.kron(drugs, targets)
    applied = kron_apply(drugs, targets, coefficients)
    np.testing.assert_allclose(applied, (whole @ coefficients.ravel()).reshape(m, n), atol=1e-12)
    a, b = (np.column_stack([generator.integers(0, m, size), generator.integers(0, n, size)]) for size in (k, other))
    entries = whole[np.ix_(a[:, 0] * n + a[:, 1], b[:, 0] * n + b[:, 1])]
    assert (pairwise_kernel(drugs, targets, a, b) == entries).all()


def test_kron_apply_takes_kernels_between_two_sets() -> None:
    generator = np.random.default_rng(0)
    drugs, targets, coefficients = (generator.normal(size=shape) for shape in ((2, 3), (5, 4), (3, 4)))
    expected = (np.kron(drugs, targets) @ coefficients.ravel()).reshape(2, 5)
    np.testing.assert_allclose(kron_apply(drugs, targets, coefficients), expected, atol=1e-12)


@settings(deadline=None)
@given(seeds, st.lists(st.floats(0, 3), min_size=1, max_size=4))
def test_kernels_are_combined_with_their_weights(seed: int, weights: list[float]) -> None:
    kernels = [definite(seed) * (number + 1) for number in range(len(weights))]
    expected = sum(weight * kernel for weight, kernel in zip(weights, kernels, strict=True))
    np.testing.assert_allclose(combine_kernels(kernels, weights), expected, atol=1e-9)
    np.testing.assert_allclose(combine_kernels(kernels), np.mean(kernels, axis=0), atol=1e-9)


@pytest.mark.parametrize(
    ("kernels", "weights", "message"),
    [
        ([], None, "no kernel"),
        ([np.eye(2)], [0.5, 0.5], "2 weights for 1 kernels"),
        ([np.eye(2)], [-1.0], "weight 0 is -1.0"),
        ([np.eye(2), np.eye(3)], None, "kernel 1 has 3 rows"),
        ([np.eye(2), np.full((2, 2), np.nan)], None, "kernel 1 is nan in row 0"),
    ],
)
def test_what_cannot_be_combined_is_refused(kernels: Any, weights: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        combine_kernels(kernels, weights)
