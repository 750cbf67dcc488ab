"""Regularised least squares with a kernel of similarity and profiles: what RLS, BLM-NII and WNN-GIP share."""

from __future__ import annotations

from typing import get_args

import numpy as np

from stillroom.cards import Paper
from stillroom.errors import InputError
from stillroom.screening._checks import Array, Mask, in_range, one_of
from stillroom.screening.kernels.algebra import PSD, psd_repaired
from stillroom.screening.kernels.gip import gip_kernel

__all__ = ["GIP_PAPER", "check_rls_options", "profile_and_similarity", "rls_side", "seen_and_cross_kernel"]

GIP_PAPER = Paper(
    title="Gaussian interaction profile kernels for predicting drug-target interaction",
    authors="T. van Laarhoven, S. B. Nabuurs, E. Marchiori",
    venue="Bioinformatics 27(21)",
    year=2011,
    identifier="doi:10.1093/bioinformatics/btr500",
)


def rls_side(kernel: Array, labels: Array, *, sigma: float = 1.0) -> Array:
    """Return the fit of kernel ridge regression, ``F = K (K + sigma I)^-1 Y``.

    Args:
        kernel: Symmetric, a row for each row of the labels.
        labels: What is regressed on, a problem a column.
        sigma: Strength of the regularisation, above 0.

    Shapes:
        kernel [m, m], labels [m, n] -> [m, n].

    Raises:
        InputError: The kernel has an eigenvalue of ``-sigma``.

    Example:
        >>> rls_side(np.eye(2), np.eye(2), sigma=1.0).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    try:
        fitted: Array = kernel @ np.linalg.solve(kernel + sigma * np.eye(len(kernel)), labels)
    except np.linalg.LinAlgError:
        raise InputError(
            f"a kernel has {-sigma:g} among its eigenvalues and cannot be regularised; change sigma, or set psd to clip"
        ) from None
    return fitted


def profile_and_similarity(
    labels: Array, similarity: Array, *, alpha: float, gamma: float, replace_new: bool = False, psd: PSD = "clip"
) -> Array:
    """Return the kernel ``alpha S + (1 - alpha) GIP`` of drugs; of targets for the transposed labels.

    Args:
        labels: Training labels, a row for each row of the similarity.
        similarity: Symmetric.
        alpha: Weight of the similarity.
        gamma: Bandwidth of the profile kernel.
        replace_new: Give rows and columns without any label those of the similarity: an empty profile says nothing.
            That makes the kernel indefinite.
        psd: How negative eigenvalues are mended.

    Shapes:
        labels [m, n], similarity [m, m] -> [m, m].
    """
    kernel = alpha * similarity + (1 - alpha) * gip_kernel(labels, gamma=gamma)
    if replace_new:
        new = ~labels.any(axis=1)
        kernel[new, :] = similarity[new, :]
        kernel[:, new] = similarity[:, new]
    return psd_repaired(kernel, psd)


def seen_and_cross_kernel(
    labels: Array, seen: Mask, similarity: Array, *, alpha: float, gamma: float, psd: PSD
) -> tuple[Array, Array]:
    """Return the kernel of the rows that are seen, and that of all rows with these.

    A row of which no pair is observed takes no part in the regression: its zeros say nothing, and its empty profile
    resembles other empty ones. Its scores come through its similarity to those that are seen.

    Args:
        labels: Training labels, a row for each row of the similarity.
        seen: Rows with an observed pair.
        similarity: Symmetric.
        alpha: Weight of the similarity.
        gamma: Bandwidth of the profile kernel.
        psd: How negative eigenvalues are mended.

    Shapes:
        labels [m, n], seen [m], similarity [m, m] -> [s, s], [m, s].
    """
    rows = np.flatnonzero(seen)
    kernel = profile_and_similarity(labels[rows], similarity[np.ix_(rows, rows)], alpha=alpha, gamma=gamma, psd=psd)
    cross = similarity[:, rows]
    cross[rows] = kernel
    return kernel, cross


def check_rls_options(alpha: float, gamma: float, sigma: float, psd: str) -> None:
    """Refuse values outside their ranges.

    Raises:
        InputError: One is.
    """
    in_range("alpha", alpha, 0, 1)
    in_range("gamma", gamma, 0, above=True)
    in_range("sigma", sigma, 0, above=True)
    one_of("psd", psd, get_args(PSD))
