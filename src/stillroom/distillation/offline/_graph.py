"""The graph of a batch's class predictions and the layer that averages embeddings over it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillroom.distillation.offline._memory import UnitLinear
from stillroom.losses.checks import full_precision

__all__ = ["GraphLayer", "prediction_neighbours"]


@torch.no_grad()
def prediction_neighbours(logits: Tensor, *, knn: int = 8) -> Tensor:
    """Return every sample's nearest neighbours in the batch by cosine similarity of the class predictions.

    S. Zhou et al., ICCV 2021: ``dist[a,b] = 1 − π_a·π_b / max(‖π_a‖‖π_b‖, 1e-7)`` with ``π = softmax(z)``; a sample is
    its own first neighbour and ties go to the lowest position.

    Args:
        logits: Logits of one network.
        knn: Number of neighbours, the sample itself included.

    Shapes:
        logits: [B, K] with B >= knn; the result is [B, knn], int64, nearest first.

    Example:
        >>> prediction_neighbours(torch.tensor([[9.0, 0.0], [0.0, 9.0], [8.0, 0.0]]), knn=2)
        tensor([[0, 2],
                [1, 2],
                [2, 0]])
    """
    prediction = full_precision(logits).softmax(dim=1)
    length = prediction.norm(dim=1)
    # Not a matrix product: its blocks round equal rows differently, and equal predictions would no longer be ties.
    inner = (prediction[:, None] * prediction).sum(dim=2)
    distance = 1.0 - inner / (length[:, None] * length).clamp_min(1e-7)
    distance = distance.masked_fill(torch.eye(len(logits), dtype=torch.bool, device=logits.device), -1.0)
    order: Tensor = distance.sort(dim=1, stable=True).indices
    return order[:, :knn]


class GraphLayer(nn.Module):
    """Topology-adaptive graph convolution with one hop: ``g_a = l2(W [e_a ‖ mean_{b ∈ N(a)} e_b] + b)``.

    All nodes have the same in-degree, so the symmetric normalisation is the mean over the neighbours.

    Args:
        width: Width D of the embeddings.

    Shapes:
        embedding: [B, D]; neighbours: [B, k], int64; the result is [B, D], rows of length 1.

    Example:
        >>> GraphLayer(4)(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2], [2, 0]])).shape
        torch.Size([3, 4])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = UnitLinear(2 * width, width)
        nn.init.xavier_normal_(self.linear.weight, gain=2.0**0.5)

    def forward(self, embedding: Tensor, neighbours: Tensor) -> Tensor:
        """Return the graph embeddings; gradient flows through the embeddings only."""
        unit: Tensor = self.linear(torch.cat((embedding, embedding[neighbours].mean(dim=1)), dim=1))
        return unit
