"""The first stretch of sampling in closed form: at large noise a model's score is that of a Gaussian."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from stillroom.errors import InputError
from stillroom.files import write_bytes_atomic

__all__ = ["GaussianStart", "fit_gaussian_start"]


@dataclass(frozen=True, eq=False)
class GaussianStart:
    """Carries unit-variance noise from the largest noise level to a smaller one without calling the model.

    For data ``N(mu, U diag(L) U^T + r (I - U U^T))`` the probability-flow ODE has the solution
    ``x_t - mu = sum_k sqrt((L_k + t^2) / (L_k + s^2)) u_k u_k^T (x_s - mu)``, and likewise with r in the directions
    that are left. With the mean and covariance of the data it follows a model's own trajectory closely as long as the
    noise is larger than the data's spread.

    Source: Wang, Vastola, The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models and its
    Applications, TMLR 2024, section 6; Chen et al., Geometric Regularity in Deterministic Sampling of Diffusion-based
    Generative Models, J. Stat. Mech. 2025, section 5.

    Args:
        mean: Mean of the data.
        vectors: Orthonormal directions of the largest variances, as rows.
        values: Variances along them.
        rest: Variance along every other direction.
        sigma_max: Noise level the noise stands at.

    Shapes:
        mean: [*shape of one sample]; vectors: [Q, D] with D elements a sample; values: [Q].

    Example:
        >>> start = GaussianStart(torch.zeros(2), torch.tensor([[1.0, 0.0]]), torch.tensor([3.0]), 0.0, sigma_max=1.0)
        >>> start(torch.ones(1, 2), 0.0)  # 1 * sqrt(3 / 4) and 0
        tensor([[0.8660, 0.0000]])
    """

    mean: Tensor
    vectors: Tensor
    values: Tensor
    rest: float
    sigma_max: float = 80.0

    def __call__(self, noise: Tensor, sigma: float) -> Tensor:
        """Return the state at noise level ``sigma``.

        Shapes:
            noise: [B, *shape of one sample], unit variance.
            Returns the same.

        Raises:
            InputError: The noise has another shape, or the level is not below ``sigma_max``.
        """
        if noise.shape[1:] != self.mean.shape:
            raise InputError(
                f"the start was fitted to samples of shape {tuple(self.mean.shape)}, got {tuple(noise.shape[1:])}"
            )
        if not 0 <= sigma < self.sigma_max:
            raise InputError(
                f"a start from sigma {self.sigma_max:g} cannot reach {sigma:g}; it must be below, from 0 on"
            )
        mean, vectors, values = (tensor.to(noise) for tensor in (self.mean, self.vectors, self.values))
        apart = (noise * self.sigma_max - mean).flatten(1)
        along = apart @ vectors.T
        rest = self._shrink(torch.tensor(self.rest).to(noise), sigma)
        moved = rest * apart + (along * (self._shrink(values, sigma) - rest)) @ vectors
        return mean + moved.view(noise.shape)

    def _shrink(self, variance: Tensor, sigma: float) -> Tensor:
        return ((variance + sigma**2) / (variance + self.sigma_max**2)).sqrt()

    def save(self, path: Path) -> None:
        """Write it as safetensors, atomically."""
        numbers = torch.tensor([self.rest, self.sigma_max], dtype=torch.float64)
        tensors = {"mean": self.mean, "vectors": self.vectors, "values": self.values, "numbers": numbers}
        write_bytes_atomic(path, to_bytes({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))

    @classmethod
    def load(cls, path: Path) -> GaussianStart:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: The file is missing, damaged, or holds something else.
        """
        try:
            tensors = load_file(path)
            rest, sigma_max = tensors["numbers"].tolist()
            return cls(tensors["mean"], tensors["vectors"], tensors["values"], rest, sigma_max)
        except FileNotFoundError:
            raise InputError(f"{path} is missing; it belongs to the schedule beside it") from None
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise InputError(f"{path} is damaged: {error}") from None


def fit_gaussian_start(samples: Tensor, *, rank: int = 64, sigma_max: float = 80.0) -> GaussianStart:
    """Fit mean, leading directions and remaining variance to samples: a model's own, or its training data.

    Args:
        samples: The more, the better; a few hundred do.
        rank: Directions with a variance of their own, at most; never more than a quarter of the samples, since smaller
            variances of few samples are mostly chance.
        sigma_max: Noise level to start from.

    Shapes:
        samples: [n, ...], n at least 2.

    Raises:
        InputError: There are fewer than two samples, or one is not finite.
    """
    if len(samples) < 2:
        raise InputError(f"a Gaussian is fitted to two samples or more, got {len(samples)}")
    if not bool(samples.isfinite().all()):
        raise InputError("a sample a Gaussian is fitted to is not finite")
    flat = samples.flatten(1).double()
    mean = flat.mean(0)
    kept = max(1, min(rank, len(flat) // 4, flat.shape[1] - 1)) if flat.shape[1] > 1 else 1
    values, vectors = _leading(flat - mean, kept)
    total = (flat - mean).square().sum().item() / (len(flat) - 1)
    rest = max(total - values.sum().item(), 0.0) / max(flat.shape[1] - kept, 1)
    like = samples.dtype if samples.dtype == torch.float64 else torch.float32
    return GaussianStart(mean.view(samples.shape[1:]).to(like), vectors.to(like), values.to(like), rest, sigma_max)


def _leading(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest variances [Q] and their directions [Q, D], from whichever product matrix is smaller."""
    n, size = centred.shape
    if n < size:
        _, singular, right = torch.linalg.svd(centred, full_matrices=False)
        return singular[:count].square() / (n - 1), right[:count]
    total = sum(_products(centred), centred.new_zeros(size, size))
    values, vectors = torch.linalg.eigh(total / (n - 1))
    return values.flip(0)[:count].clamp(min=0), vectors.flip(1)[:, :count].T.contiguous()


def _products(centred: Tensor) -> Iterator[Tensor]:
    for part in torch.split(centred, 4096):
        yield part.T @ part
