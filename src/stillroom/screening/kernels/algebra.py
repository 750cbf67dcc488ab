"""What turns similarities into kernels: normalisation, centring, repair of definiteness, Kronecker products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import InputError
from stillroom.screening._checks import Array, checked_similarity, in_range, one_of

__all__ = [
    "PSD",
    "centre_kernel",
    "combine_kernels",
    "kron_apply",
    "mended_eigenvalues",
    "normalise_kernel",
    "pairwise_kernel",
    "psd_repaired",
    "smallest_eigenvalue",
]

PSD = Literal["clip", "shift", "flip", "none"]


def psd_repaired(kernel: Array, how: PSD = "clip") -> Array:
    """Return the nearest usable kernel without negative eigenvalues.

    Y. Chen et al., "Similarity-based classification: concepts and algorithms", JMLR 2009, section 3. With
    ``K = V diag(l) V^T``: clip takes ``max(l, 0)``, the nearest such matrix in Frobenius norm; flip takes ``|l|``;
    shift adds ``-min(l)`` to all, which changes the diagonal alone; none returns the matrix as it is.

    Args:
        kernel: Symmetric, [N, N].
        how: What happens to negative eigenvalues.

    Raises:
        InputError: ``how`` is none of these.

    Example:
        >>> psd_repaired(np.array([[0.0, 1.0], [1.0, 0.0]])).round(6).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    one_of("psd", how, get_args(PSD))
    if how == "none":
        return kernel
    values, vectors = np.linalg.eigh(kernel)
    if values[0] >= 0:
        return kernel
    repaired: Array = (vectors * mended_eigenvalues(values, how)) @ vectors.T
    return repaired


def mended_eigenvalues(values: Array, how: PSD = "clip") -> Array:
    """Return the eigenvalues a kernel has after :func:`psd_repaired`; its eigenvectors stay.

    Args:
        values: Ascending, [N].
        how: What happens to negative ones.

    Raises:
        InputError: ``how`` is none of these.

    Example:
        >>> mended_eigenvalues(np.array([-1.0, 3.0]), "shift").tolist()
        [0.0, 4.0]
    """
    one_of("psd", how, get_args(PSD))
    if how == "none" or values[0] >= 0:
        return values
    mended: Array = {
        "clip": np.maximum(values, 0.0),
        "flip": np.abs(values),
        "shift": values - values[0],
    }[how]
    return mended


def smallest_eigenvalue(kernel: Array) -> float:
    """Return the smallest eigenvalue of a symmetric matrix; below 0 it is no kernel."""
    return float(np.linalg.eigvalsh(kernel)[0])


def centre_kernel(kernel: Array) -> Array:
    """Return the kernel of features moved to mean zero: ``H K H`` with ``H = I - 1/N``.

    Example:
        >>> centre_kernel(np.eye(2)).tolist()
        [[0.5, -0.5], [-0.5, 0.5]]
    """
    from sklearn.preprocessing import KernelCenterer

    centred: Array = KernelCenterer().fit_transform(kernel)
    return centred


def normalise_kernel(kernel: Array, name: str = "kernel") -> Array:
    """Return the cosine of the features: ``K[i, j] / sqrt(K[i, i] K[j, j])``.

    Raises:
        InputError: A diagonal entry is not positive; the line names the row.

    Example:
        >>> normalise_kernel(np.array([[4.0, 1.0], [1.0, 1.0]])).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    diagonal = np.diagonal(kernel)
    bad = np.flatnonzero(~(diagonal > 0))
    if len(bad):
        raise InputError(
            f"{name}: row {bad[0]} (counted from 0) has {diagonal[bad[0]]:g} on the diagonal; it cannot be normalised"
        )
    normalised: Array = kernel / np.sqrt(np.outer(diagonal, diagonal))
    return normalised


def combine_kernels(kernels: Sequence[Array], weights: Sequence[float] | None = None) -> Array:
    """Return the weighted sum of kernels of the same objects; equal weights that sum to 1 unless given.

    Raises:
        InputError: There is none, sizes differ, or a weight is negative.

    Example:
        >>> combine_kernels([np.eye(2), np.ones((2, 2))], [0.75, 0.25]).tolist()
        [[1.0, 0.25], [0.25, 1.0]]
    """
    if not kernels:
        raise InputError("there is no kernel to combine")
    given = [1 / len(kernels)] * len(kernels) if weights is None else list(weights)
    if len(given) != len(kernels):
        raise InputError(f"{len(given)} weights for {len(kernels)} kernels; one each")
    for number, weight in enumerate(given):
        in_range(f"weight {number}", weight, 0)
    size = len(kernels[0])
    combined = np.zeros((size, size))
    for number, (weight, kernel) in enumerate(zip(given, kernels, strict=True)):
        combined += weight * checked_similarity(kernel, size, f"kernel {number}")
    return combined


def pairwise_kernel(
    drug_kernel: Array, target_kernel: Array, pairs_a: NDArray[np.intp], pairs_b: NDArray[np.intp]
) -> Array:
    """Return the kernel between pairs: ``K((d, t), (d', t')) = K_d[d, d'] K_t[t, t']``.

    L. Jacob, J.-P. Vert, "Protein-ligand interaction prediction: an improved chemogenomics approach",
    Bioinformatics 2008.

    Shapes:
        drug_kernel [m, m], target_kernel [n, n], pairs_a [P, 2], pairs_b [Q, 2] -> [P, Q].

    Example:
        >>> one = np.array([[0, 1]])
        >>> pairwise_kernel(np.eye(2), 3 * np.eye(2), one, one).tolist()
        [[3.0]]
    """
    product: Array = drug_kernel[pairs_a[:, :1], pairs_b[:, 0]]
    product *= target_kernel[pairs_a[:, 1:], pairs_b[:, 1]]
    return product


def kron_apply(drug_kernel: Array, target_kernel: Array, coefficients: Array) -> Array:
    """Multiply the Kronecker product of two kernels with a matrix of coefficients, without ever forming it.

    ``F[d, t] = sum over d', t' of K_d[d, d'] K_t[t, t'] A[d', t']``, which is ``K_d A K_t^T``.

    Shapes:
        drug_kernel [k, m], target_kernel [l, n], coefficients [m, n] -> [k, l].
    """
    product: Array = drug_kernel @ coefficients @ target_kernel.T
    return product
