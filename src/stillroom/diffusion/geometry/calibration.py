"""Trajectories turned so that they lie on each other."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.errors import InputError

__all__ = ["calibrate", "central", "procrustes", "shape_spread"]


def procrustes(source: Tensor, target: Tensor) -> Tensor:
    """Return the orthogonal map O (reflections allowed) for which ``source @ O`` is nearest to ``target``.

    ``source^T target = U S V^T``, ``O = U V^T`` (Schoenemann, A generalized solution of the orthogonal Procrustes
    problem, Psychometrika, 1966).

    Shapes:
        source, target: [..., T, K].
        Returns [..., K, K].

    Raises:
        InputError: The shapes differ.

    Example:
        >>> corner = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> procrustes(corner, corner.flip(1)).abs()
        tensor([[0., 1.],
                [1., 0.]])
    """
    if source.shape[-2:] != target.shape[-2:]:
        raise InputError(f"the curves differ: {tuple(source.shape)} and {tuple(target.shape)}")
    u, _, vh = torch.linalg.svd(source.mT @ target)
    rotation: Tensor = u @ vh
    return rotation


def calibrate(coordinates: Tensor, reference: Tensor | None = None, *, plane: bool = True) -> Tensor:
    """Align projected trajectories to a reference one.

    Source: Chen, Zhou, Wang, Shen, Lyu, On the Trajectory Regularity of ODE-based Diffusion Sampling, ICML 2024,
    figure 4.

    Args:
        coordinates: As :func:`~stillroom.diffusion.geometry.projection.project3d` returns them.
        reference: What to align to; the first trajectory by default.
        plane: Turn only within the plane across the chord, as published; otherwise in all three dimensions.

    Shapes:
        coordinates: [T, B, 3]; reference: [T, 3].
        Returns [T, B, 3].

    Example:
        >>> calibrate(torch.tensor([[[1.0, 2.0, 0.0]], [[0.0, 0.0, 1.0]]])).shape
        torch.Size([2, 1, 3])
    """
    reference = coordinates[:, 0] if reference is None else reference
    start = 1 if plane else 0
    turned = coordinates[..., start:].transpose(0, 1)  # [B, T, K]
    turned = turned @ procrustes(turned, reference[:, start:])
    return torch.cat([coordinates[..., :start], turned.transpose(0, 1)], dim=-1)


def central(coordinates: Tensor, *, share: float = 0.8) -> Tensor:
    """Return the indices of the trajectories that are neither the flattest nor the most bent.

    They are ranked by ``sum over time of y^2 + 10 z^2``, and the middle ``share`` of them is kept, as in the published
    figures.

    Shapes:
        coordinates: [T, B, 3].
        Returns [kept], rising.

    Example:
        >>> central(torch.arange(10.0).reshape(1, 10, 1).expand(2, 10, 3))
        tensor([1, 2, 3, 4, 5, 6, 7, 8])
    """
    if not 0 < share <= 1:
        raise InputError(f"share is {share}; it must be above 0 and at most 1")
    bend = (coordinates[..., 1].square() + 10 * coordinates[..., 2].square()).sum(0)
    count = bend.shape[0]
    cut = round(count * (1 - share) / 2)
    return bend.argsort(stable=True)[cut : count - cut].sort().values


def shape_spread(coordinates: Tensor) -> float:
    """Return how far aligned trajectories are from their mean, relative to its size, both across the chord.

    ``rms || c_i - mean c_i || / rms || mean c_i ||`` over time and samples, c the two coordinates across the chord.

    Shapes:
        coordinates: [T, B, 3], aligned (see :func:`calibrate`).

    Example:
        >>> shape_spread(torch.ones(5, 2, 3))
        0.0
    """
    across = coordinates[..., 1:]
    mean = across.mean(1, keepdim=True)
    return float((across - mean).square().sum(-1).mean().sqrt() / mean.square().sum(-1).mean().sqrt())
