"""Sampling with the score of a Gaussian instead of the model's: what the first steps of sampling are about."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.denoiser import per_sample
from stillroom.errors import InputError

__all__ = ["GaussianScore", "fit_gaussian_score"]


class GaussianScore:
    """The denoiser of one Gaussian, or of one per class, whose covariance is the identity or of low rank.

    With the identity, ``D = (sigma^2 mu + x) / (1 + sigma^2)``; with eigenpairs (U, L) of the covariance,
    ``D = mu + U diag(L / (L + sigma^2)) U^T (x - mu)``. Several components, equally likely, are mixed with the
    weights ``softmax_k log N(x; mu_k, C_k + sigma^2 I)`` of their full covariances C_k.

    Source: Chen, Zhou, Wang, Lyu, Geometric Regularity in Deterministic Sampling of Diffusion-based Generative Models,
    J. Stat. Mech. 2025 (there with 1,000 directions of CIFAR-10). For mixtures of Gaussians with diagonal covariances
    see :class:`~stillroom.diffusion.denoisers.closed_form.GaussianMixture`.

    Args:
        mean: Means.
        eigenvectors: Orthonormal directions of each covariance, as columns; none for the identity.
        eigenvalues: Variances along them.
        covariance: Full covariances for the weights; needed with several components that have directions.

    Shapes:
        mean: [D] or [K, D]; eigenvectors: [D, Q] or [K, D, Q]; eigenvalues: [Q] or [K, Q]; covariance: [K, D, D].
        Called with x [B, ...] of D elements a sample and sigma [], [1], [B] or [B, 1, ..., 1]; returns [B, ...].

    Raises:
        InputError: The shapes do not fit together, or several components lack their covariances.

    Example:
        >>> GaussianScore(torch.zeros(2))(torch.ones(1, 2), torch.tensor(1.0))
        tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        mean: Tensor,
        eigenvectors: Tensor | None = None,
        eigenvalues: Tensor | None = None,
        covariance: Tensor | None = None,
    ) -> None:
        self.mean = mean if mean.ndim == 2 else mean[None]
        components, size = self.mean.shape
        self.vectors = self.values = self.spectrum = self.basis = None
        if (eigenvectors is None) != (eigenvalues is None):
            raise InputError("eigenvectors and eigenvalues go together")
        if eigenvectors is not None and eigenvalues is not None:
            self.vectors = eigenvectors if eigenvectors.ndim == 3 else eigenvectors[None]
            self.values = eigenvalues if eigenvalues.ndim == 2 else eigenvalues[None]
            rank = self.values.shape[1]
            if self.vectors.shape != (components, size, rank) or len(self.values) != components:
                raise InputError(
                    f"{components} means of {size} elements do not fit eigenvectors {tuple(eigenvectors.shape)} and "
                    f"eigenvalues {tuple(eigenvalues.shape)}"
                )
            if components > 1:
                if covariance is None or covariance.shape != (components, size, size):
                    raise InputError(f"{components} components need their full covariances [K, D, D] for the weights")
                self.spectrum, self.basis = torch.linalg.eigh(covariance)

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the denoised samples, in the type of ``x``."""
        like = self.mean
        noise = per_sample(sigma, x).to(like).reshape(-1, 1, 1).square()  # [B or 1, 1, 1]
        apart = x.flatten(1).to(like)[:, None] - like  # [B, K, D]
        if self.vectors is None or self.values is None:
            part = apart / (1 + noise)
        else:
            along = torch.einsum("bkd,kdq->bkq", apart, self.vectors)
            part = torch.einsum("bkq,kdq->bkd", along * (self.values / (self.values + noise)), self.vectors)
        means = like + part
        if len(like) > 1:
            means = means * self._log_density(apart, noise).softmax(1)[..., None]
        return means.sum(1).to(x.dtype).reshape(x.shape)

    def _log_density(self, apart: Tensor, noise: Tensor) -> Tensor:
        """Return ``log N(x; mu_k, C_k + sigma^2 I)``, [B, K], up to a constant that all components share."""
        if self.basis is None or self.spectrum is None:
            variance = 1 + noise
            return -apart.square().div(variance).sum(-1) / 2
        variance = self.spectrum + noise  # [B or 1, K, D]
        along = torch.einsum("bkd,kde->bke", apart, self.basis)
        density: Tensor = (along.square() / variance + variance.log()).sum(-1) / -2
        return density


def fit_gaussian_score(data: Tensor, rank: int | None, target: Tensor | None = None) -> GaussianScore:
    """Fit a Gaussian to data, or one per class, by the exact eigendecomposition of the covariance.

    # Deviation: the published code takes a randomised, centred PCA of the covariance matrix itself.

    Args:
        data: The samples.
        rank: Number of directions kept; ``None`` for unit covariance.
        target: Class of every sample; one component per class.

    Shapes:
        data: [n, ...]; target: [n] int64.

    Raises:
        InputError: There are fewer than two samples of a class, or the rank does not fit their number and size.

    Example:
        >>> corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> fit_gaussian_score(corners, 2).values
        tensor([[0.6667, 0.6667]], dtype=torch.float64)
    """
    flat = data.flatten(1)
    groups = [flat] if target is None else [flat[target == label] for label in torch.unique(target)]
    smallest = min(len(group) for group in groups)
    most = min(smallest - 1, flat.shape[1])
    if smallest < 2 or (rank is not None and not 1 <= rank <= most):
        raise InputError(
            f"the rank of a Gaussian fitted to {smallest} samples of {flat.shape[1]} elements must be from 1 to "
            f"{max(most, 1)}, got {rank}"
        )
    mean = torch.stack([group.double().mean(0) for group in groups])
    if rank is None:
        return GaussianScore(mean)
    pairs = [_eigenpairs(group, centre, rank) for group, centre in zip(groups, mean, strict=True)]
    values, vectors = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    covariance = None
    if len(groups) > 1:
        covariance = torch.stack([_covariance(group, centre) for group, centre in zip(groups, mean, strict=True)])
    return GaussianScore(mean, vectors, values, covariance)


def _eigenpairs(group: Tensor, mean: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues [Q] of the covariance, falling, and their eigenvectors [D, Q]."""
    if len(group) < group.shape[1]:  # then the samples' own products are the smaller matrix
        _, singular, right = torch.linalg.svd(group.double() - mean, full_matrices=False)
        return singular[:rank].square() / (len(group) - 1), right[:rank].T
    values, vectors = torch.linalg.eigh(_covariance(group, mean))
    return values.flip(0)[:rank].clamp_min(0), vectors.flip(1)[:, :rank]


def _covariance(group: Tensor, mean: Tensor) -> Tensor:
    """Return the covariance [D, D], adding up a few thousand samples at a time."""
    size = group.shape[1]
    total = mean.new_zeros(size, size)
    for part in torch.split(group, max(1, math.ceil(2**24 / size))):
        apart = part.double() - mean
        total.addmm_(apart.T, apart)
    return total / (len(group) - 1)
