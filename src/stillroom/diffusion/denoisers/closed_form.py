"""Denoisers that are known exactly: of a finite data set and of Gaussians; computed in float64, returned like ``x``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from stillroom.errors import InputError

__all__ = ["GaussianMixture", "OptimalDenoiser"]

NEAREST = 8  # data points per query whose distances are computed from differences
BLOCK = 2**22  # float64 values of the largest temporary, 32 MiB


class OptimalDenoiser:
    """The optimal denoiser of a finite data set y_1..y_n with weights p_i, each smeared by N(0, h^2 I).

    With ``b^2 = sigma^2 + h^2`` and ``m = sum_i w_i y_i``, ``w = softmax_i(log p_i - |x - y_i|^2 / (2 b^2))``, it is
    ``D(x, sigma) = (sigma^2 m + h^2 x) / b^2``; m is one mean-shift step of bandwidth b from x.

    Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022, eq. 57 (h
    = 0); Chen et al., A Geometric Perspective on Diffusion Models, 2023 (mean shift).

    The distances come, up to |x|^2 and with centred data, from one float64 matrix product ``x.y - |y|^2 / 2``, whose
    rounding error is about 1e-16 |x| |y|. At small sigma that may be much, so those of the nearest points are computed
    again from differences. Differentiable in x and sigma; of sigma = 0 it knows nothing.

    Args:
        data: Data points; kept as one float64 copy.
        weights: Their weights, not negative, up to a common factor; equal by default.
        labels: Their classes; given a condition, only data of that class counts.
        bandwidth: The kernel's standard deviation h.

    Shapes:
        data: [n, ...].
        weights: [n].
        labels: [n], int64.

    Raises:
        InputError: There is no data, a value is not finite, or shapes do not match.

    Example:
        >>> denoiser = OptimalDenoiser(torch.tensor([[-1.0], [1.0]]))
        >>> denoiser(torch.tensor([[0.0], [0.3]]), torch.tensor(0.1))
        tensor([[0.],
                [1.]])
    """

    def __init__(
        self, data: Tensor, *, weights: Tensor | None = None, labels: Tensor | None = None, bandwidth: float = 0.0
    ) -> None:
        if data.ndim < 2 or data.numel() == 0:
            raise InputError(f"the data of the optimal denoiser must be [n, ...] and not empty, got {_shape(data)}")
        if not data.is_floating_point():
            raise InputError(f"the data of the optimal denoiser must be floating-point numbers, got {data.dtype}")
        if not math.isfinite(bandwidth) or bandwidth < 0:
            raise InputError(f"the bandwidth must be at least 0 and finite, got {bandwidth:g}")
        for name, given in (("weights", weights), ("labels", labels)):
            if given is not None and given.shape != data.shape[:1]:
                raise InputError(f"there are {len(data)} data points but {name} have shape {_shape(given)}")
        _require_finite("the data of the optimal denoiser", data)
        data = data.detach()
        weights = data.new_ones(len(data)) if weights is None else weights
        self._log_weights = _weights(weights, data).log()
        used = self._log_weights > -math.inf  # a point without weight must not be the nearest one
        if not bool(used.all()):
            data, labels = data[used], None if labels is None else labels[used]
            self._log_weights = self._log_weights[used]
        self.shape, self.bandwidth, self.labels = data.shape[1:], float(bandwidth), labels
        self._points = data.flatten(1).to(torch.float64, copy=True)
        self._centre = self._points.mean(0)
        self._points -= self._centre
        self._squares = torch.einsum("nd,nd->n", self._points, self._points)

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the denoised samples, [B, ...], of the type of ``x``.

        Args:
            x: Noisy samples.
            sigma: Noise levels, positive.
            condition: Classes, [B] or []; -1 stands for all, like ``None``.

        Raises:
            InputError: Shapes do not match, or the data has no labels for the condition.
        """
        mean, queries, variance = self._mean(x, sigma, condition)
        if self.bandwidth:
            mean = torch.lerp(mean, queries, self.bandwidth**2 / variance)
        return (mean + self._centre).reshape(x.shape).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the gradient of :meth:`log_density` in ``x``, ``(D - x) / sigma^2``, [B, ...]."""
        mean, queries, variance = self._mean(x, sigma, condition)
        return ((mean - queries) / variance).reshape(x.shape).to(x.dtype)

    def log_density(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the natural logarithm of the density of the data with noise added, [B]."""
        queries, variance, classes = self._prepare(x, sigma, condition)
        densities = []
        for at in self._blocks(len(x)):
            prior = self._log_prior(None if classes is None else classes[at])
            logits, least = self._logits(queries[at], variance[at], prior)
            densities.append(logits.logsumexp(1) - least - prior.logsumexp(-1))
        dimension = self._points.shape[1]
        return (torch.cat(densities) - dimension / 2 * (2 * math.pi * variance[:, 0]).log()).to(x.dtype)

    def _mean(self, x: Tensor, sigma: Tensor, condition: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the softmax mean [B, d] and the queries [B, d], both centred, and b^2 [B, 1]."""
        queries, variance, classes = self._prepare(x, sigma, condition)
        means = []
        for at in self._blocks(len(x)):
            prior = self._log_prior(None if classes is None else classes[at])
            means.append(self._logits(queries[at], variance[at], prior)[0].softmax(1) @ self._points)
        return torch.cat(means), queries, variance

    def _prepare(self, x: Tensor, sigma: Tensor, condition: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        queries, variance = _flat(x, sigma, self.shape, self._points.device)
        classes = None
        if condition is not None:
            if self.labels is None:
                raise InputError("this optimal denoiser has no labels, so it takes no condition; pass labels=...")
            classes = torch.as_tensor(condition, device=self.labels.device).reshape(-1, 1)
            if len(classes) not in (1, len(x)):
                raise InputError(f"there are {len(x)} samples but {len(classes)} classes")
            classes = classes.expand(len(x), 1)
        return queries - self._centre, variance + self.bandwidth**2, classes

    def _blocks(self, batch: int) -> list[slice]:
        rows = max(1, BLOCK // max(len(self._points), NEAREST * self._points.shape[1]))
        return [slice(start, start + rows) for start in range(0, max(batch, 1), rows)]

    def _log_prior(self, classes: Tensor | None) -> Tensor:
        """Return ln p_i, up to a constant, [n] or [b, n]; -inf for data of other classes."""
        if classes is None:
            return self._log_weights
        return self._log_weights.masked_fill((classes != self.labels) & (classes >= 0), -math.inf)

    def _logits(self, queries: Tensor, variance: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``ln p_i + (|x - y_0|^2 - |x - y_i|^2) / (2 b^2)`` and ``|x - y_0|^2 / (2 b^2)``, y_0 the nearest."""
        points = self._points
        products = torch.addmm(self._squares, queries, points.t(), beta=-0.5)  # [b, n], x.y - |y|^2 / 2
        seen = products.detach()
        if prior.ndim == 2:
            seen = seen.masked_fill(prior == -math.inf, -math.inf)
        near = seen.topk(min(NEAREST, len(points)), dim=1).indices
        closest = points[near]  # [b, NEAREST, d]
        offsets = queries - closest[:, 0]  # x - y_0
        steps = closest - closest[:, :1]  # y_i - y_0
        exact = (steps @ offsets[:, :, None])[:, :, 0] - torch.linalg.vector_norm(steps, dim=2).square() / 2
        # Relative to the nearest point; of those near it, where it matters, exactly.
        products = (products - products.gather(1, near[:, :1])).scatter_(1, near, exact)
        least = offsets.square().sum(1) / (2 * variance[:, 0])
        return torch.addcdiv(prior, products, variance), least


class GaussianMixture:
    """The denoiser of a mixture of Gaussians with diagonal covariances: smooth, exact, never collapsing to points.

    ``D(x, sigma) = sum_k w_k (mu_k + v_k / (v_k + sigma^2) (x - mu_k))`` with
    ``w = softmax_k(log pi_k + log N(x; mu_k, v_k + sigma^2))``.

    Args:
        weight: Weights pi_k, not negative, up to a common factor.
        mean: Means mu_k.
        variance: Variances v_k of every element.

    Shapes:
        weight: [K].
        mean: [K, ...].
        variance: [K, ...].

    Raises:
        InputError: Shapes do not match, or a value is out of its range.

    Example:
        >>> mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 2))
        >>> mixture(torch.ones(1, 2), torch.tensor(1.0))
        tensor([[0.5000, 0.5000]])
    """

    def __init__(self, weight: Tensor, mean: Tensor, variance: Tensor) -> None:
        if mean.ndim < 2 or mean.shape != variance.shape or weight.shape != mean.shape[:1]:
            raise InputError(
                "a mixture needs weight [K], mean [K, ...] and variance like mean, "
                f"got {_shape(weight)}, {_shape(mean)} and {_shape(variance)}"
            )
        _require_finite("the means of the mixture", mean)
        _require_finite("the variances of the mixture", variance)
        if bool((variance < 0).any()):
            raise InputError("the variances of the mixture must not be negative")
        self.shape = mean.shape[1:]
        self._log_weight = _weights(weight, mean).log()
        self._mean, self._variance = mean.detach().flatten(1).double(), variance.detach().flatten(1).double()

    def __call__(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the denoised samples, [B, ...], of the type of ``x``.

        Raises:
            InputError: Shapes do not match, or a condition is given.
        """
        weights, _, offsets, spread, _ = self._evaluate(x, sigma, condition)
        denoised = self._mean - offsets * (self._variance / spread)
        return torch.einsum("bk,bkd->bd", weights, denoised).reshape(x.shape).to(x.dtype)

    def score(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the gradient of :meth:`log_density` in ``x``, ``(D - x) / sigma^2``, [B, ...]."""
        weights, _, offsets, spread, _ = self._evaluate(x, sigma, condition)
        return torch.einsum("bk,bkd->bd", weights, offsets / spread).reshape(x.shape).to(x.dtype)

    def log_density(self, x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        """Return the natural logarithm of the density of the mixture with noise added, [B]."""
        return self._evaluate(x, sigma, condition)[1].to(x.dtype)

    def _evaluate(self, x: Tensor, sigma: Tensor, condition: Any) -> tuple[Tensor, ...]:
        _require_no_condition(condition)
        queries, variance = _flat(x, sigma, self.shape, self._mean.device)
        spread = self._variance + variance[:, :, None]  # [B, K, d]
        offsets = self._mean - queries[:, None]
        logs = self._log_weight - (offsets.square() / spread + (2 * math.pi * spread).log()).sum(2) / 2
        return logs.softmax(1), logs.logsumexp(1), offsets, spread, variance


def _flat(x: Tensor, sigma: Tensor, shape: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the samples as float64 [B, d] and the squared noise levels as float64 [B, 1]."""
    if x.shape[1:] != shape or x.ndim == 0:
        raise InputError(f"samples must have shape [B, {', '.join(map(str, shape))}], got {_shape(x)}")
    if x.device != device:
        raise InputError(f"the samples are on {x.device} but the closed form's data is on {device}; move one of them")
    if sigma.numel() not in (1, len(x)):
        raise InputError(f"there are {len(x)} samples but {sigma.numel()} noise levels; give one, or one per sample")
    levels = sigma.to(x.device, torch.float64).reshape(-1, 1).expand(len(x), 1)
    return x.flatten(1).double(), levels.square()


def _weights(weights: Tensor, like: Tensor) -> Tensor:
    """Return weights that sum to 1, in float64."""
    weights = weights.detach().to(like.device, torch.float64)
    if not bool(weights.isfinite().all()) or bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise InputError("weights must be finite, not negative, and at least one positive")
    return weights / weights.sum()


def _require_finite(what: str, values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise InputError(f"{what} must be finite, but some values are NaN or infinite")


def _require_no_condition(condition: Any) -> None:
    if condition is not None:
        raise InputError("this closed-form denoiser takes no condition")


def _shape(values: Tensor) -> list[int]:
    return list(values.shape)
