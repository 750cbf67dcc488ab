"""The symmetric normalisation of a graph convolution."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["symmetric_norm"]


def symmetric_norm(edge_index: Tensor, num_nodes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return ``d_out(s)^{-1/2} d_in(d)^{-1/2}`` of every edge, degrees of 0 counted as 1.

    On a graph whose edges go both ways this is what PyG's ``GCNConv`` computes; of a directed one PyG takes the
    in-degree of both ends. Nothing is added to the edges: a node without incoming edges gets no message, so add self
    loops to the graph.

    Shapes:
        edge_index: [2, E], int64; the result: [E].

    Example:
        >>> symmetric_norm(torch.tensor([[0, 1, 1], [1, 0, 1]]), 2)
        tensor([0.7071, 0.7071, 0.5000])
    """
    # Half precision cannot count a hub's edges: in bfloat16 256 + 1 is 256.
    counted = torch.promote_types(dtype, torch.float32)
    ones = torch.ones(edge_index.shape[1], dtype=counted, device=edge_index.device)
    source, destination = edge_index

    def inverse_root(ends: Tensor) -> Tensor:
        degree = ones.new_zeros(num_nodes).index_add(0, ends, ones)
        return degree.clamp(min=1).rsqrt().index_select(0, ends)

    return (inverse_root(source) * inverse_root(destination)).to(dtype)
