"""OKDMDE: OKDDip with features fused over the peers and classifiers pushed apart. A reconstruction.

No code of the paper is public and its equations could not be consulted: the two ideas are the paper's, the formulas in
this file are a reconstruction of them. Results do not replicate the paper.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.online._method import Said, Signal
from stillroom.distillation.online.diversity import pairs
from stillroom.distillation.online.okddip import PAPER, OKDDip, PeerAttention
from stillroom.errors import InputError, unknown_name
from stillroom.losses.checks import full_precision, not_negative

__all__ = ["OKDMDE", "FeatureFusion", "cd_loss"]

Mode = Literal["cosine", "dot"]


class FeatureFusion(nn.Module):
    """Fuse the last feature maps of all peers, and lend each peer's pooled feature the fused one (reconstructed).

    After the idea of Z. Li et al., "Online Knowledge Distillation via Multi-branch Diversity Enhancement", ACCV 2020:
    ``U = ReLU(BN(Conv1×1(concat_a F_a)))``, ``h_a = GAP(F_a) + GAP(U)``.

    Args:
        channels: C of a peer's map.
        peers: M.

    Shapes:
        maps: [B, M, C, H, W].

    Returns:
        ``forward(maps)`` returns the features [B, M, C]; ``fuse(maps)`` the fused map [B, C, H, W].

    Example:
        >>> FeatureFusion(8, 3)(torch.randn(2, 3, 8, 4, 4)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(self, channels: int, peers: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(peers * channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def fuse(self, maps: Tensor) -> Tensor:
        """Return the fused map U."""
        fused: Tensor = F.relu(self.bn(self.conv(maps.flatten(1, 2))))
        return fused

    def forward(self, maps: Tensor) -> Tensor:
        """Return every peer's pooled feature with the fused one added."""
        fused = full_precision(self.fuse(maps)).mean((2, 3))
        return full_precision(maps).mean((3, 4)) + fused[:, None]


def cd_loss(classifiers: Tensor, *, mode: Mode = "cosine") -> Tensor:
    """Return how alike the classifiers of the peers are (reconstructed).

    After the idea of Z. Li et al., ACCV 2020. ``cosine``: the mean over pairs of
    ``|⟨vec W_a, vec W_b⟩| / (‖W_a‖ ‖W_b‖)``; ``dot``: the mean over pairs of ``(1/K²) Σ_ij |(W_a W_bᵀ)_ij|``. Identical
    classifiers are a stationary point of ``cosine``: initialise them differently. At exact orthogonality, and for a
    classifier that is zero, the gradient is 0.

    Args:
        classifiers: Weights of the peers' final linear layers, without biases.
        mode: Which of the two.

    Shapes:
        classifiers: [M, K, D] with M >= 2.

    Returns:
        A scalar; for ``cosine`` between 0 and 1.

    Raises:
        InputError: There are fewer than two classifiers, or the mode is unknown.

    Example:
        >>> cd_loss(torch.ones(3, 10, 16))
        tensor(1.)
    """
    if mode not in get_args(Mode):
        raise unknown_name("mode", mode, get_args(Mode))
    if classifiers.ndim != 3:
        raise InputError(f"classifiers must be [M, K, D], not {list(classifiers.shape)}")
    first, second = pairs(classifiers.shape[0], classifiers.device)
    weights = full_precision(classifiers)
    if mode == "dot":
        return (weights[first] @ weights[second].transpose(1, 2)).abs().mean()
    directions = F.normalize(weights.flatten(1), dim=1)
    return (directions[first] * directions[second]).sum(1).abs().mean()


class OKDMDE(OKDDip):
    """Multi-branch diversity enhancement, **reconstructed**: OKDDip with fused features and diverse classifiers.

    No code of the paper is public; its abstract fixes two ideas, a feature fusion module (FFM) that feeds the attention
    and a classifier diversification (CD) term, and the formulas here are a reconstruction of them, not a replication:
    ``L = L_OKDDip + weight_cd · L_CD``. A ``weight_cd`` of 0 leaves OKDDip with fused features.

    Args:
        temperature: T, softens the distributions of the terms between members.
        alpha: Weight of the terms between members.
        factor: The attention's projections are this many times shorter than the features.
        weight_cd: Weight of the classifier diversification; no value of the paper is known.
        mode: How alike two classifiers are: cosine of their weights, or dot, the mean absolute product of their rows.
        rampup: Epochs over which the terms between members reach their full weight.
        rampup_start: Fraction of the training after which the ramp-up begins; before it the weight is full.
        detach_leader_target: Let no gradient of the leader's soft-target term into the peers.
    """

    card: ClassVar[Card] = Card(
        name="okdmde",
        summary="OKDDip with features fused over the peers and classifiers pushed apart, reconstructed from an "
        "abstract.",
        papers=(
            Paper(
                title="Online Knowledge Distillation via Multi-branch Diversity Enhancement",
                authors="Z. Li, Y. Huang, D. Chen, T. Luo, N. Cai, Z. Pan",
                venue="ACCV",
                year=2020,
                identifier="arXiv:2010.00795",
            ),
            PAPER,
        ),
        standing="reconstructed",
        ledger=(
            Quirk(
                paper="Fuses the peers' last features and diversifies their classifiers; the equations could not be "
                "consulted.",
                code="None is public: concatenation, 1×1 convolution, BN, ReLU and pooling, and the absolute cosine "
                "between classifiers, are our reading.",
                default="neither",
                option="mode, weight_cd",
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"stages"})
    fewest: ClassVar[int] = 3

    fusion: FeatureFusion

    def __init__(
        self,
        *,
        temperature: float = 3.0,
        alpha: float = 1.0,
        factor: int = 8,
        weight_cd: float = 0.1,
        mode: Mode = "cosine",
        rampup: int = 80,
        rampup_start: float = 0.0,
        detach_leader_target: bool = False,
    ) -> None:
        super().__init__(
            temperature=temperature,
            alpha=alpha,
            factor=factor,
            rampup=rampup,
            rampup_start=rampup_start,
            detach_leader_target=detach_leader_target,
        )
        self.weight_cd = not_negative("weight_cd", weight_cd)
        if mode not in get_args(Mode):
            raise unknown_name("mode", mode, get_args(Mode))
        self.mode: Mode = mode

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"{super().extra_repr()}, weight_cd={self.weight_cd}, mode={self.mode!r}"

    def build(self, said: Said) -> None:
        """Create fusion module and attention, and check that there are classifiers to diversify."""
        assert said.maps is not None  # asked for in signals
        if not said.classifiers:
            raise InputError("okdmde diversifies the members' final linear layers, and this network has none")
        peers, channels = said.maps.shape[1] - 1, said.maps.shape[2]
        self.fusion = FeatureFusion(channels, peers)
        self.attention = PeerAttention(channels, factor=self.factor)

    def forward(self, said: Said, target: Tensor, weight: Tensor | float) -> dict[str, Tensor]:
        """Return OKDDip's objective over fused features plus the classifier diversification, and all terms."""
        assert said.maps is not None
        targets = self.attention(self.fusion(said.maps[:, 1:]), said.logits[:, 1:]).targets
        parts = self.objective(said, targets, target, weight)
        if not self.weight_cd:
            return parts
        cd = cd_loss(torch.stack(said.classifiers[1:]), mode=self.mode)
        return parts | {"loss": parts["loss"] + self.weight_cd * cd, "cd": cd.detach()}
