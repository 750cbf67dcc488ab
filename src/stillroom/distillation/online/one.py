"""ONE: branches that imitate the gated mixture of themselves."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.online._method import Method, Said
from stillroom.distillation.online.kl import check_peers, kl_loss, peer_cross_entropy
from stillroom.errors import InputError
from stillroom.losses.checks import full_precision, not_negative, positive

__all__ = ["ONE", "Gate", "one_loss"]


class Gate(nn.Module):
    """Weigh the branches by the map they share, sample by sample.

    X. Lan et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018:
    ``g = softmax(ReLU(BN(W GAP(x) + b)))``; the ReLU comes before the softmax.

    Args:
        channels: C of the trunk's map.
        branches: M.

    Shapes:
        trunk: [B, C, H, W]; logits: [B, M, K]. In training B > 1, for the batch norm.

    Returns:
        The mixture ``Σ_i g_i z_i`` [B, K].

    Example:
        >>> import torch
        >>> Gate(8, 3).eval()(torch.randn(5, 8, 4, 4), torch.randn(5, 3, 10)).shape
        torch.Size([5, 10])
    """

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        self.bn = nn.BatchNorm1d(branches)

    def forward(self, trunk: Tensor, logits: Tensor) -> Tensor:
        """Return the mixture of the branches' logits."""
        weights = F.softmax(full_precision(F.relu(self.bn(self.linear(trunk.mean((2, 3)))))), dim=1)
        mixture: Tensor = (weights[:, :, None] * full_precision(logits)).sum(1)
        return mixture


def one_loss(
    logits: Tensor,
    ensemble: Tensor,
    target: Tensor,
    *,
    temperature: float = 3.0,
    alpha: float = 1.0,
    weight: float | Tensor = 1.0,
) -> dict[str, Tensor]:
    """Return ONE's objective of all branches and their mixture, with its terms.

    X. Lan et al., NeurIPS 2018: ``L = Σ_i CE(z_i, y) + CE(z_e, y) + α w Σ_i KL(z_i, z_e)`` by
    :func:`~stillroom.distillation.online.kl.kl_loss`; nothing is detached.

    Args:
        logits: Of all branches.
        ensemble: z_e, their mixture by :class:`Gate`.
        target: Classes.
        temperature: T, softens both distributions.
        alpha: α, weight of the soft-target terms.
        weight: w, their ramp-up weight of this epoch.

    Shapes:
        logits: [B, M, K]; ensemble: [B, K]; target: [B], int64.

    Returns:
        ``loss``, a scalar, and detached ``cross_entropy`` (branches and mixture) and ``kl`` (sum over branches).

    Raises:
        InputError: Shapes that do not fit, or a temperature that is not above 0.

    Example:
        >>> import torch
        >>> parts = one_loss(torch.zeros(4, 3, 10), torch.zeros(4, 10), torch.zeros(4, dtype=torch.int64))
        >>> print(f"{parts['cross_entropy']:.3f}")
        9.210
    """
    check_peers(logits, target, least=1)
    cross_entropy = peer_cross_entropy(logits, target) + F.cross_entropy(full_precision(ensemble), target)
    kl = kl_loss(logits, ensemble[:, None].expand_as(logits), temperature=temperature)
    return {"loss": cross_entropy + alpha * weight * kl, "cross_entropy": cross_entropy.detach(), "kl": kl.detach()}


class ONE(Method):
    """On-the-fly native ensemble: branches on a shared trunk imitate their own gated mixture.

    Needs a trunk. The first branch is deployed.

    Args:
        temperature: T, softens the distributions of the soft-target terms.
        alpha: Weight of the soft-target terms.
        rampup: Epochs over which the soft-target terms reach their full weight.
        rampup_start: Fraction of the training after which the ramp-up begins; before it the weight is full.
    """

    card: ClassVar[Card] = Card(
        name="one",
        summary="Branches on a shared trunk imitate a mixture of themselves that a gate weighs.",
        papers=(
            Paper(
                title="Knowledge Distillation by On-the-Fly Native Ensemble",
                authors="X. Lan, X. Zhu, S. Gong",
                venue="NeurIPS",
                year=2018,
                identifier="arXiv:1806.04606",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The ensemble is the gated mixture.",
                code="OKDDip's code, whose numbers are compared with, reports the plain mean of the branches.",
                default="neither",
            ),
        ),
    )
    needs_trunk: ClassVar[bool] = True

    gate: Gate

    def __init__(
        self, *, temperature: float = 3.0, alpha: float = 1.0, rampup: int = 80, rampup_start: float = 0.0
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.alpha = not_negative("alpha", alpha)
        self._ramp(rampup, rampup_start)

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"temperature={self.temperature}, alpha={self.alpha}, rampup={self.rampup}"

    def build(self, said: Said) -> None:
        """Create the gate on the trunk's map."""
        assert said.trunk is not None  # asked for with needs_trunk
        if said.logits.shape[0] == 1:
            raise InputError("one's gate has a batch norm and cannot be trained on single samples; use a larger batch")
        self.gate = Gate(said.trunk.shape[1], said.logits.shape[1])

    def forward(self, said: Said, target: Tensor, weight: Tensor | float) -> dict[str, Tensor]:
        """Return the objective of all branches and their mixture."""
        mixture = self._mixture(said)
        return one_loss(said.logits, mixture, target, temperature=self.temperature, alpha=self.alpha, weight=weight)

    def ensembles(self, said: Said) -> dict[str, Tensor]:
        """Return the mean of the branches' logits and, as ``gate``, the gated mixture."""
        return super().ensembles(said) | {"gate": self._mixture(said)}

    def _mixture(self, said: Said) -> Tensor:
        assert said.trunk is not None
        mixture: Tensor = self.gate(said.trunk, said.logits)
        return mixture
