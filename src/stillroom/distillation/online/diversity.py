"""How different the answers of peers are: distance between their distributions, and how often they disagree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stillroom.errors import InputError
from stillroom.losses.checks import full_precision

__all__ = ["disagreement", "diversity", "pairs"]


def pairs(peers: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the indices of all unordered pairs of so many peers.

    Raises:
        InputError: There are fewer than two.
    """
    if peers < 2:
        raise InputError(f"peers are compared two by two; {peers} is too few")
    first, second = torch.triu_indices(peers, peers, 1, device=device)
    return first, second


def diversity(logits: Tensor) -> Tensor:
    """Return the mean Euclidean distance between the class distributions of two peers.

    D. Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020: the mean over samples and unordered
    pairs of ``‖softmax(z_a) − softmax(z_b) + 1e-6‖₂``, the constant added to every coordinate.

    Args:
        logits: Of all peers.

    Shapes:
        logits: [B, M, K] with M >= 2.

    Returns:
        A scalar, between 0 (nearly) and √2.

    Raises:
        InputError: There are fewer than two peers.

    Example:
        >>> print(f"{diversity(torch.tensor([[[99.0, 0.0], [0.0, 99.0]]])):.4f}")
        1.4142
    """
    first, second = pairs(logits.shape[1], logits.device)
    probabilities = F.softmax(full_precision(logits), dim=-1)
    # Deviation: the released metric divides by the literal 3; the number of pairs is the same for three peers.
    distances: Tensor = torch.linalg.vector_norm(probabilities[:, first] - probabilities[:, second] + 1e-6, dim=-1)
    return distances.mean()


def disagreement(logits: Tensor) -> Tensor:
    """Return the fraction of samples and unordered pairs of peers that answer different classes.

    Args:
        logits: Of all peers.

    Shapes:
        logits: [B, M, K] with M >= 2.

    Returns:
        A scalar between 0 and 1.

    Raises:
        InputError: There are fewer than two peers.

    Example:
        >>> disagreement(torch.tensor([[[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]]))
        tensor(0.6667)
    """
    first, second = pairs(logits.shape[1], logits.device)
    answers = logits.argmax(dim=-1)
    return (answers[:, first] != answers[:, second]).to(torch.float32).mean()
