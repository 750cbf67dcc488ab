"""OKDDip: peers that imitate attention-weighted mixtures of each other, and a leader that imitates them all."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.online._method import Method, Said, Signal
from stillroom.distillation.online.kl import check_peers, kl_loss, peer_cross_entropy
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, not_negative, positive

__all__ = ["PAPER", "OKDDip", "PeerAttention", "PeerTargets", "okddip_loss"]

PAPER = Paper(
    title="Online Knowledge Distillation with Diverse Peers",
    authors="D. Chen, J.-P. Mei, C. Wang, Y. Feng, C. Chen",
    venue="AAAI",
    year=2020,
    identifier="arXiv:1912.00350",
)


class PeerTargets(NamedTuple):
    """What every peer is to imitate.

    Shapes:
        attention: [B, M, M]; row a holds the weights of peer a's target and sums to 1.
        targets: [B, M, K] logits.
    """

    attention: Tensor
    targets: Tensor


class PeerAttention(nn.Module):
    """Mix the peers' logits into a target of its own for every peer.

    D. Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020, as released:
    ``E_ab = ⟨W_q h_a, W_k h_b⟩`` (not divided by √d), ``A = softmax_b(E)`` over all peers, a itself included, and
    ``t_a = Σ_b A_ab z_b``. Nothing is detached: the projections are trained through the targets alone.

    Args:
        dim: D, length of a peer's pooled feature.
        factor: r; the projections are ``W_q, W_k`` of shape [D // r, D] without bias.

    Shapes:
        features: [B, M, D]; logits: [B, M, K].

    Raises:
        InputError: The factor is below 1 or above ``dim``.

    Example:
        >>> attention, targets = PeerAttention(16, factor=8)(torch.randn(5, 3, 16), torch.randn(5, 3, 10))
        >>> attention.shape, targets.shape
        (torch.Size([5, 3, 3]), torch.Size([5, 3, 10]))
    """

    def __init__(self, dim: int, *, factor: int = 8) -> None:
        super().__init__()
        if not 1 <= factor <= dim:
            raise InputError(f"factor is {factor}; it must be between 1 and the {dim} features of a peer")
        self.query = nn.Linear(dim, dim // factor, bias=False)
        self.key = nn.Linear(dim, dim // factor, bias=False)

    def forward(self, features: Tensor, logits: Tensor) -> PeerTargets:
        """Return attention and targets."""
        features = full_precision(features)
        # Autocast would take the products in half precision, in which unscaled ones of large features overflow.
        with torch.autocast(features.device.type, enabled=False):
            energy = self.query(features) @ self.key(features).transpose(1, 2)
            attention = F.softmax(energy, dim=-1)
            return PeerTargets(attention, attention @ full_precision(logits))


def okddip_loss(
    peers: Tensor,
    soft_targets: Tensor,
    leader: Tensor,
    target: Tensor,
    *,
    temperature: float = 3.0,
    alpha: float = 1.0,
    weight: float | Tensor = 1.0,
    detach_leader_target: bool = False,
) -> dict[str, Tensor]:
    """Return OKDDip's objective of all peers and the leader, with its terms.

    D. Chen et al., AAAI 2020: ``L = Σ_a CE(z_a, y) + CE(z_L, y) + α w [Σ_a KL(z_a, t_a) + KL(z_L, mean_b z_b)]`` with
    :func:`~stillroom.distillation.online.kl.kl_loss`. Sums over peers, not means. As in the released code nothing is
    detached: the leader's term moves the peers too, and ``soft_targets`` train what made them.

    Args:
        peers: Logits of the auxiliary peers.
        soft_targets: Their targets t_a, as :class:`PeerAttention` returns them.
        leader: Logits of the group leader.
        target: Classes.
        temperature: T, softens the distributions of the two soft-target terms.
        alpha: α, weight of those two terms.
        weight: w, their ramp-up weight of this epoch.
        detach_leader_target: Let no gradient of the leader's soft-target term into the peers.

    Shapes:
        peers, soft_targets: [B, M, K]; leader: [B, K]; target: [B], int64.

    Returns:
        ``loss``, a scalar, and detached its sums ``cross_entropy`` (all members), ``cross_entropy_peers``,
        ``kl_peers`` and ``kl_leader``.

    Raises:
        InputError: Shapes that do not fit, or a temperature that is not above 0.

    Example:
        >>> same = torch.zeros(4, 3, 10)
        >>> parts = okddip_loss(same, same, same[:, 0], torch.zeros(4, dtype=torch.int64))
        >>> print(f"{parts['cross_entropy']:.3f} {parts['kl_peers']:.3f}")
        9.210 0.000
    """
    check_peers(peers, target, least=1)
    ce_peers, ce_leader = peer_cross_entropy(peers, target), F.cross_entropy(full_precision(leader), target)
    ensemble = full_precision(peers).mean(1)
    kl_peers = kl_loss(peers, soft_targets, temperature=temperature)
    kl_leader = kl_loss(leader, ensemble.detach() if detach_leader_target else ensemble, temperature=temperature)
    cross_entropy = ce_peers + ce_leader
    return {
        "loss": cross_entropy + alpha * weight * (kl_peers + kl_leader),
        "cross_entropy": cross_entropy.detach(),
        "cross_entropy_peers": ce_peers.detach(),
        "kl_peers": kl_peers.detach(),
        "kl_leader": kl_leader.detach(),
    }


class OKDDip(Method):
    """Online distillation with diverse peers: two levels, several auxiliary peers and one leader that is deployed.

    Each auxiliary peer imitates a mixture of all peers that an attention over their features weighs for it, which keeps
    the peers diverse; the leader imitates their mean and is what is deployed. Works with branches on a shared trunk and
    with complete networks.

    Args:
        temperature: T, softens the distributions of the terms between members.
        alpha: Weight of the terms between members.
        factor: The attention's projections are this many times shorter than the features.
        rampup: Epochs over which the terms between members reach their full weight.
        rampup_start: Fraction of the training after which the ramp-up begins; before it the weight is full.
        detach_leader_target: Let no gradient of the leader's soft-target term into the peers.
    """

    card: ClassVar[Card] = Card(
        name="okddip",
        summary="Peers imitate attention-weighted mixtures of each other, a leader imitates them all and is deployed.",
        papers=(PAPER,),
        standing="verified",
        ledger=(
            Quirk(
                paper="Mixes the peers' softened probabilities into a target.",
                code="Mixes their logits.",
                default="code",
            ),
            Quirk(
                paper="Targets are what a peer imitates.",
                code="Detaches nothing: peers are moved by being imitated, and the attention is trained through the "
                "targets alone, so detaching these would freeze it.",
                default="code",
                option="detach_leader_target, for the leader's",
            ),
            Quirk(
                paper="The weight of the soft targets rises gradually.",
                code="With a late start of the ramp-up the weight is full before it.",
                default="code",
            ),
            Quirk(
                paper="Every branch owns the last stage.",
                code="The DenseNet branches all hold the same block object and so share its weights.",
                default="paper",
            ),
            Quirk(
                paper="Diversity is a mean over pairs of peers.",
                code="Divides by the literal 3 and leaves out the last branch in ONE's script.",
                default="paper",
            ),
            Quirk(
                paper="Reports the leader's test accuracy.",
                code="Selects the epoch on the test set.",
                default="neither",
            ),
        ),
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({"pooled"})
    has_leader: ClassVar[bool] = True

    attention: PeerAttention

    def __init__(
        self,
        *,
        temperature: float = 3.0,
        alpha: float = 1.0,
        factor: int = 8,
        rampup: int = 80,
        rampup_start: float = 0.0,
        detach_leader_target: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.alpha = not_negative("alpha", alpha)
        if factor < 1:
            raise InputError(f"factor must be at least 1, got {factor}")
        self.factor = factor
        self.detach_leader_target = detach_leader_target
        self._ramp(rampup, rampup_start)

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"temperature={self.temperature}, alpha={self.alpha}, factor={self.factor}, rampup={self.rampup}"

    def build(self, said: Said) -> None:
        """Create the attention over the peers' pooled features."""
        assert said.pooled is not None  # asked for in signals
        self.attention = PeerAttention(said.pooled.shape[-1], factor=self.factor)

    def forward(self, said: Said, target: Tensor, weight: Tensor | float) -> dict[str, Tensor]:
        """Return the objective of all members and its terms."""
        assert said.pooled is not None
        return self.objective(said, self.attention(said.pooled[:, 1:], said.logits[:, 1:]).targets, target, weight)

    def objective(self, said: Said, targets: Tensor, target: Tensor, weight: Tensor | float) -> dict[str, Tensor]:
        """Return the objective for targets [B, M − 1, K] however they were made."""
        return okddip_loss(
            said.logits[:, 1:],
            targets,
            said.logits[:, 0],
            target,
            temperature=self.temperature,
            alpha=self.alpha,
            weight=weight,
            detach_leader_target=self.detach_leader_target,
        )
