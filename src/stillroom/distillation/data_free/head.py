"""The head of CSD's auxiliary task: class and orientation of an image, from the student's features."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.losses.checks import full_precision

__all__ = ["AuxiliaryHead"]


class AuxiliaryHead(nn.Module):
    """Two linear layers from the student's pooled features to ``4C`` joint classes, L2-normalised.

    S. Luo, D. Chen, C. Wang, "Customizing Synthetic Data for Data-Free Student Learning", ICME 2023. With the
    normalisation of the released code the outputs lie in [−1, 1], and their cross-entropy stays close to ``log 4C``.

    Args:
        features: d, width of the pooled features.
        num_classes: C.
        hidden: Width between the layers; d by default.
        normalize: Whether the outputs are divided by their Euclidean norm.

    Shapes:
        Takes [B, d]; returns [B, 4C].

    Example:
        >>> import torch
        >>> [round(norm, 3) for norm in AuxiliaryHead(8, 10)(torch.randn(2, 8)).norm(dim=1).tolist()]
        [1.0, 1.0]
    """

    def __init__(self, features: int, num_classes: int, *, hidden: int | None = None, normalize: bool = True) -> None:
        super().__init__()
        hidden = hidden or features
        self.normalize = normalize
        self.head = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 4 * num_classes))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = full_precision(self.head(features))
        return F.normalize(logits, dim=1) if self.normalize else logits
