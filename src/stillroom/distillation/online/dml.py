"""DML: peers that imitate each other, with no leader and no ramp-up."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.online._method import Method, Said
from stillroom.distillation.online.kl import check_peers, kl_loss, mean_of_others, peer_cross_entropy
from stillroom.losses.checks import positive

__all__ = ["DML", "dml_loss"]


def dml_loss(
    logits: Tensor, target: Tensor, *, temperature: float = 3.0, pairwise: bool = False, detach_targets: bool = False
) -> dict[str, Tensor]:
    """Return the objective of mutual learning, with its terms.

    Y. Zhang et al., "Deep Mutual Learning", CVPR 2018, in the form of OKDDip's released code:
    ``L = Σ_j CE(z_j, y) + D`` with ``D = Σ_j KL(z_j, mean_{k≠j} z_k)``, or pairwise
    ``D = Σ_j 1/(M−1) Σ_{k≠j} KL(z_j, z_k)``, by :func:`~stillroom.distillation.online.kl.kl_loss`.

    Args:
        logits: Of all peers.
        target: Classes.
        temperature: T, softens both distributions; the original has 1.
        pairwise: Compare peers two by two instead of with the mean of the others.
        detach_targets: Let no gradient into the peers that are imitated, as the original does.

    Shapes:
        logits: [B, M, K] with M >= 2; target: [B], int64.

    Returns:
        ``loss``, a scalar, and detached its sums over peers ``cross_entropy`` and ``kl``.

    Raises:
        InputError: Shapes that do not fit, fewer than two peers, or a temperature that is not above 0.

    Example:
        >>> import torch
        >>> parts = dml_loss(torch.zeros(4, 3, 10), torch.zeros(4, dtype=torch.int64))
        >>> print(f"{parts['loss']:.3f}")
        6.908
    """
    check_peers(logits, target, least=2)
    imitated = logits.detach() if detach_targets else logits
    if pairwise:
        others = logits.shape[1] - 1
        terms = [kl_loss(logits, imitated.roll(by, 1), temperature=temperature) for by in range(1, others + 1)]
        kl = sum(terms[1:], start=terms[0]) / others
    else:
        kl = kl_loss(logits, mean_of_others(imitated), temperature=temperature)
    cross_entropy = peer_cross_entropy(logits, target)
    return {"loss": cross_entropy + kl, "cross_entropy": cross_entropy.detach(), "kl": kl.detach()}


class DML(Method):
    """Deep mutual learning: every peer learns from the labels and from the other peers.

    Works with branches on a shared trunk and with complete networks; the first peer is deployed.

    Args:
        temperature: T, softens the distributions of the terms between peers.
        pairwise: Compare peers two by two instead of with the mean of the others.
        detach_targets: Let no gradient into the peers that are imitated, as the original does.
    """

    card: ClassVar[Card] = Card(
        name="dml",
        summary="Every peer imitates the mean of the others, from the first epoch on.",
        papers=(
            Paper(
                title="Deep Mutual Learning",
                authors="Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu",
                venue="CVPR",
                year=2018,
                identifier="arXiv:1706.00384",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="Temperature 1, soft targets detached, networks updated in turns.",
                code="OKDDip's code, whose numbers are compared with: temperature 3, nothing detached, one update.",
                default="code",
                option="temperature, detach_targets",
            ),
            Quirk(
                paper="Averages the divergences from each of the other peers.",
                code="OKDDip's code: the divergence from the mean of the others' logits.",
                default="code",
                option="pairwise",
            ),
        ),
    )

    def __init__(self, *, temperature: float = 3.0, pairwise: bool = False, detach_targets: bool = False) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.pairwise, self.detach_targets = pairwise, detach_targets

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"temperature={self.temperature}, pairwise={self.pairwise}, detach_targets={self.detach_targets}"

    def forward(self, said: Said, target: Tensor, weight: Tensor | float) -> dict[str, Tensor]:
        """Return the objective of all peers; there is no ramp-up."""
        return dml_loss(
            said.logits,
            target,
            temperature=self.temperature,
            pairwise=self.pairwise,
            detach_targets=self.detach_targets,
        )
