"""CL-ILR: collaborative learning of branches on a shared trunk whose gradient is rescaled."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from stillroom.cards import Card, Paper
from stillroom.distillation.online._method import Method, Said
from stillroom.distillation.online.kl import check_peers, kl_loss, mean_of_others, peer_cross_entropy
from stillroom.losses.checks import not_negative, positive

__all__ = ["CLILR", "clilr_loss", "rescale_gradient"]


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def rescale_gradient(features: Tensor, factor: float) -> Tensor:
    """Return the features themselves, and multiply the gradient that comes back by a factor.

    G. Song, W. Chai, "Collaborative Learning for Deep Neural Networks", NeurIPS 2018, backpropagation rescaling: with
    ``factor = 1/M`` a trunk gets the mean of the gradients of M branches instead of their sum.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> (3 * rescale_gradient(x, 0.5)).sum().backward()
        >>> x.grad
        tensor([1.5000, 1.5000])
    """
    rescaled: Tensor = _Rescale.apply(features, factor)
    return rescaled


def clilr_loss(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 3.0,
    alpha: float = 1.0,
    weight: float | Tensor = 1.0,
) -> dict[str, Tensor]:
    """Return the objective of collaborative learning, with its terms.

    G. Song, W. Chai, NeurIPS 2018, in the form of OKDDip's released code:
    ``L = Σ_i CE(z_i, y) + α w Σ_i KL(z_i, mean_{j≠i} z_j)`` by
    :func:`~stillroom.distillation.online.kl.kl_loss`; nothing is detached.

    Args:
        logits: Of all branches.
        target: Classes.
        temperature: T, softens both distributions.
        alpha: α, weight of the soft-target terms.
        weight: w, their ramp-up weight of this epoch.

    Shapes:
        logits: [B, M, K] with M >= 2; target: [B], int64.

    Returns:
        ``loss``, a scalar, and detached its sums over branches ``cross_entropy`` and ``kl``.

    Raises:
        InputError: Shapes that do not fit, fewer than two branches, or a temperature that is not above 0.

    Example:
        >>> parts = clilr_loss(torch.zeros(4, 3, 10), torch.zeros(4, dtype=torch.int64))
        >>> print(f"{parts['loss']:.3f}")
        6.908
    """
    check_peers(logits, target, least=2)
    cross_entropy = peer_cross_entropy(logits, target)
    kl = kl_loss(logits, mean_of_others(logits), temperature=temperature)
    return {"loss": cross_entropy + alpha * weight * kl, "cross_entropy": cross_entropy.detach(), "kl": kl.detach()}


class CLILR(Method):
    """Collaborative learning with intermediate-level representation sharing and backpropagation rescaling.

    Needs a trunk, whose gradient is divided by the number of branches. The first branch is deployed.

    Args:
        temperature: T, softens the distributions of the soft-target terms.
        alpha: Weight of the soft-target terms.
        rampup: Epochs over which the soft-target terms reach their full weight.
        rampup_start: Fraction of the training after which the ramp-up begins; before it the weight is full.
    """

    card: ClassVar[Card] = Card(
        name="clilr",
        summary="Branches on a shared trunk imitate the mean of the others; the trunk gets the mean of their "
        "gradients.",
        papers=(
            Paper(
                title="Collaborative Learning for Deep Neural Networks",
                authors="G. Song, W. Chai",
                venue="NeurIPS",
                year=2018,
                identifier="arXiv:1805.11761",
            ),
        ),
        standing="verified",
    )
    needs_trunk: ClassVar[bool] = True

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

    def at_trunk(self, features: Tensor, members: int) -> Tensor:
        """Return the trunk's output; its gradient is divided by the number of branches."""
        return rescale_gradient(features, 1.0 / members)

    def forward(self, said: Said, target: Tensor, weight: Tensor | float) -> dict[str, Tensor]:
        """Return the objective of all branches."""
        return clilr_loss(said.logits, target, temperature=self.temperature, alpha=self.alpha, weight=weight)
