"""The independent ensemble: peers that learn from the labels alone, the baseline of all online methods."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from stillroom.cards import Card
from stillroom.distillation.online._method import Method, Said
from stillroom.distillation.online.kl import check_peers, peer_cross_entropy
from stillroom.distillation.online.okddip import PAPER

__all__ = ["Independent", "independent_loss"]


def independent_loss(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return the sum of the peers' cross-entropies, ``L = Σ_i CE(z_i, y)``.

    The baseline "Ind" of D. Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020.

    Args:
        logits: Of all peers.
        target: Classes.

    Shapes:
        logits: [B, M, K]; target: [B], int64.

    Returns:
        ``loss``, a scalar.

    Raises:
        InputError: Shapes that do not fit.

    Example:
        >>> import torch
        >>> print(f"{independent_loss(torch.zeros(4, 3, 10), torch.zeros(4, dtype=torch.int64))['loss']:.3f}")
        6.908
    """
    check_peers(logits, target, least=1)
    return {"loss": peer_cross_entropy(logits, target)}


class Independent(Method):
    """Peers that learn from the labels alone: what the online methods have to beat.

    Works with branches on a shared trunk and with complete networks; the first peer is deployed.
    """

    card: ClassVar[Card] = Card(
        name="independent",
        summary="Peers learn from the labels alone; the baseline of the online methods and their ensemble.",
        papers=(PAPER,),
        standing="verified",
    )

    def forward(self, said: Said, target: Tensor, weight: Tensor | float) -> dict[str, Tensor]:
        """Return the sum of the peers' cross-entropies."""
        return independent_loss(said.logits, target)
