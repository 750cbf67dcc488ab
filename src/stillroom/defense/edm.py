"""EDM: several networks that agree on what they know and disagree elsewhere; the query itself chooses who answers.

S. Kariyappa, A. Prakash, M. K. Qureshi, "Protecting DNNs from Theft using an Ensemble of Diverse Models", ICLR 2021.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stillroom.cards import Card, Paper
from stillroom.defense._perturbed import perturbed
from stillroom.defense.contracts import Answers, Images, Ints, Queries, softmax
from stillroom.defense.outliers import Training, train_with_outliers
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, not_negative
from stillroom.training.contracts import Loader

__all__ = ["EDM", "Ensemble", "chosen_members", "diversity_loss", "train_diverse"]


def diversity_loss(logits: Tensor) -> Tensor:
    """Return ``mean_b log Σ_{m<n} exp(cos(y_m, y_n))`` of the members' softmax outputs y on outliers.

    Shapes:
        logits: [B, M, K], M >= 2; the loss is a scalar.

    Raises:
        InputError: There are fewer than 2 members.

    Example:
        >>> apart, alike = torch.tensor([[[50.0, 0.0], [0.0, 50.0]]]), torch.zeros(1, 2, 2)
        >>> print(f"{diversity_loss(apart):.3f} {diversity_loss(alike):.3f}")
        0.000 1.000
    """
    if logits.ndim != 3 or logits.shape[1] < 2:
        raise InputError(f"logits must be [B, M, K] with at least 2 members, not {list(logits.shape)}")
    directions = F.normalize(full_precision(logits).softmax(2), dim=2)
    first, second = torch.triu_indices(logits.shape[1], logits.shape[1], offset=1, device=logits.device)
    return (directions[:, first] * directions[:, second]).sum(2).logsumexp(1).mean()


class Ensemble(nn.Module):
    """Several networks that see the same images.

    Args:
        members: At least two.

    Shapes:
        Takes [B, C, H, W]; returns [B, M, K].

    Raises:
        InputError: There are fewer than 2 members.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(members) < 2:
            raise InputError(f"an ensemble needs at least 2 members, not {len(members)}")
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Return every member's logits."""
        return torch.stack([member(images) for member in self.members], 1)


def train_diverse(
    ensemble: Ensemble, clean: Loader, outliers: Tensor, training: Training, *, weight_diversity: float = 1.0
) -> list[dict[str, Any]]:
    """Train the members together: the mean of their cross-entropies plus ``weight_diversity · diversity_loss``.

    Args:
        ensemble: Trained in place.
        clean: Labelled images.
        outliers: Images of other things.
        training: Recipe, normalisation, seed and run.
        weight_diversity: Weight of the outliers' term.

    Shapes:
        outliers: [N, C, H, W], uint8.

    Returns:
        One record an epoch.
    """
    not_negative("weight_diversity", weight_diversity)

    def objective(logits: Tensor, target: Tensor, outlier_logits: Tensor, _: Tensor) -> dict[str, Tensor]:
        members = logits.shape[1]
        return {
            "ce": F.cross_entropy(full_precision(logits).flatten(0, 1), target.repeat_interleave(members)),
            "diversity": weight_diversity * diversity_loss(outlier_logits),
        }

    return train_with_outliers(ensemble, clean, outliers, objective, training, label="diverse ensemble")


def chosen_members(images: Images, members: int, secret: bytes) -> Ints:
    """Return which member answers each image: HMAC-SHA256(secret, image) modulo their number.

    Shapes:
        images: [B, C, H, W]. Returns [B].

    Example:
        >>> chosen_members(np.zeros((2, 1, 4, 4), np.uint8), 3, b"0123456789abcdef").tolist()
        [0, 0]
    """
    macs = (hmac.digest(secret, np.ascontiguousarray(image).data, "sha256") for image in images)
    return np.array([int.from_bytes(mac[:8], "big") % members for mac in macs], np.int64)


class EDM:
    """Each query is answered by one member of an ensemble, always the same for the same image.

    Args:
        members: Logits [B, K] of each network, trained with :func:`train_diverse`; at least two.
        secret: Keys the hash that chooses, at least 16 bytes; who lacks it cannot aim at one member.

    Raises:
        InputError: There are fewer than 2 members, or the secret is too short.
    """

    card: ClassVar[Card] = Card(
        name="edm",
        summary="Networks that disagree on strange images answer in turns that the query itself decides.",
        papers=(
            Paper(
                title="Protecting DNNs from Theft using an Ensemble of Diverse Models",
                authors="S. Kariyappa, A. Prakash, M. K. Qureshi",
                venue="ICLR",
                year=2021,
                identifier="OpenReview:LucJxySuJcE",
            ),
        ),
        standing="reconstructed",
    )

    def __init__(self, members: Sequence[Callable[[Images], NDArray[np.floating]]], *, secret: bytes) -> None:
        if len(members) < 2:
            raise InputError(f"an ensemble needs at least 2 members, not {len(members)}")
        if len(secret) < 16:
            raise InputError("the ensemble's secret must have at least 16 bytes")
        self.members, self._secret = tuple(members), secret

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries."""
        clean = softmax(queries.logits)
        answered = np.empty_like(clean)
        chosen = chosen_members(queries.images, len(self.members), self._secret)
        for index in np.unique(chosen):
            own = chosen == index
            answered[own] = softmax(self.members[index](queries.images[own]))
        return perturbed(clean, answered)
