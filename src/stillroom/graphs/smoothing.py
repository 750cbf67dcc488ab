"""How alike the embeddings of neighbours are: Dirichlet energy and mean average distance tell of over-smoothing."""

from __future__ import annotations

import torch
from torch import Tensor

from stillroom.losses.checks import full_precision

__all__ = ["dirichlet_energy", "mean_average_distance"]

_EDGES_AT_ONCE = 65536


def dirichlet_energy(features: Tensor, edge_index: Tensor) -> Tensor:
    """Return how much embeddings change along the edges, as a share of their size: 0 where all are smoothed out.

    C. Cai, Y. Wang, "A Note on Over-Smoothing for Graph Neural Networks", 2020, divided by the squared norm so that a
    scale of the embeddings does not count:
    ``1/2 sum_{(s, d)} |h_s / sqrt(1 + deg_s) - h_d / sqrt(1 + deg_d)|^2 / sum_v |h_v|^2``, self loops left out.

    Args:
        features: Node embeddings.
        edge_index: Edges both ways.

    Shapes:
        features: [N, D]; edge_index: [2, E], int64.

    Returns:
        A scalar between 0 and 2; 0 for embeddings that are all zero.

    Example:
        >>> pair = torch.tensor([[0, 1], [1, 0]])
        >>> float(dirichlet_energy(torch.tensor([[1.0], [1.0]]), pair))
        0.0
        >>> round(float(dirichlet_energy(torch.tensor([[1.0], [-1.0]]), pair)), 4)
        1.0
    """
    edges = _without_loops(edge_index)
    features = full_precision(features.detach())
    N = features.shape[0]
    degree = torch.bincount(edges[1], minlength=N).to(features.dtype)
    scaled = features * (1 + degree).rsqrt()[:, None]
    total = features.new_zeros(())
    for source, destination in _pieces(edges):
        total = total + (scaled.index_select(0, source) - scaled.index_select(0, destination)).square().sum()
    size = features.square().sum()
    return torch.where(size > 0, 0.5 * total / size.clamp(min=torch.finfo(features.dtype).tiny), size)


def mean_average_distance(features: Tensor, edge_index: Tensor) -> Tensor:
    """Return the mean cosine distance of nodes from their neighbours: 0 where all are smoothed out.

    D. Chen et al., "Measuring and Relieving the Over-smoothing Problem for Graph Neural Networks from the Topological
    View", AAAI 2020 (MAD over neighbours): the distance ``1 - cos(h_s, h_d)`` averaged over the incoming edges of every
    node, then over the nodes that have any, self loops left out.

    Shapes:
        features: [N, D]; edge_index: [2, E], int64.

    Returns:
        A scalar between 0 and 2; NaN for a graph without edges.

    Example:
        >>> pair = torch.tensor([[0, 1], [1, 0]])
        >>> mean_average_distance(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), pair)
        tensor(1.)
    """
    edges = _without_loops(edge_index)
    unit = torch.nn.functional.normalize(full_precision(features.detach()), dim=1)
    N = features.shape[0]
    total, count = unit.new_zeros(N), torch.bincount(edges[1], minlength=N)
    for source, destination in _pieces(edges):
        cosine = (unit.index_select(0, source) * unit.index_select(0, destination)).sum(1)
        total.index_add_(0, destination, 1 - cosine)
    return (total / count.clamp(min=1)).sum() / (count > 0).sum()


def _without_loops(edge_index: Tensor) -> Tensor:
    return edge_index[:, edge_index[0] != edge_index[1]]


def _pieces(edges: Tensor) -> list[tuple[Tensor, Tensor]]:
    starts = range(0, edges.shape[1], _EDGES_AT_ONCE)
    return [(part[0], part[1]) for part in (edges[:, start : start + _EDGES_AT_ONCE] for start in starts)]
