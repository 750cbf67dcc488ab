"""LSKD: the classical KD loss on standardised logits (Sun et al., CVPR 2024)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._method import Convention, Method, Weights
from stillroom.losses.checks import check_logits, positive
from stillroom.losses.kl import kd_loss, standardise_logits
from stillroom.models.signals import Signals

__all__ = ["LSKD", "LSKDLoss", "lskd_loss"]


def lskd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Return the classical KD loss of the two networks' standardised logits.

    S. Sun, W. Ren, J. Li, R. Wang, X. Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024:
    ``T² KL(softmax(Z(z_T) / T) ‖ softmax(Z(z_S) / T))`` where ``Z`` standardises every sample's logits over the
    classes. The loss does not change when either network's logits are shifted or scaled by a positive number.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.
        temperature: T, softens both distributions.

    Shapes:
        student, teacher: [B, K].

    Returns:
        A scalar.

    Raises:
        InputError: The logits cannot be compared or the temperature is not above 0.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[1.0, 3.0, 2.0]])
        >>> print(f"{lskd_loss(5 * teacher + 7, teacher).abs():.4f}")
        0.0000
    """
    check_logits(student, teacher)
    return kd_loss(standardise_logits(student), standardise_logits(teacher.detach()), temperature=temperature)


class LSKDLoss(nn.Module):
    """:func:`lskd_loss` with its temperature stored.

    Args:
        temperature: T, softens both distributions.

    Shapes:
        student, teacher: [B, K]; the loss is a scalar.

    Raises:
        InputError: The temperature is not above 0.
    """

    def __init__(self, *, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the student's logits against the teacher's."""
        return lskd_loss(student, teacher, temperature=self.temperature)

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"temperature={self.temperature}"


class LSKD(Method):
    """KD on standardised logits: ``L = ce · CE + 9 · T² KL`` with raw logits in the cross-entropy.

    Args:
        temperature: T, softens both distributions.
    """

    card = Card(
        name="lskd",
        summary="Every sample's logits are standardised before the classical KD loss, so only their shape is matched.",
        papers=(
            Paper(
                title="Logit Standardization in Knowledge Distillation",
                authors="S. Sun, W. Ren, J. Li, R. Wang, X. Cao",
                venue="CVPR",
                year=2024,
                identifier="arXiv:2403.01427",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="A row of equal logits has no standard deviation to divide by.",
                code="1e-7 is added to the unbiased (K − 1) standard deviation.",
                default="code",
            ),
        ),
    )
    # No SimKD-style release of this method exists: that preset takes the released weight with a full cross-entropy.
    presets: ClassVar[dict[Convention, Weights]] = {
        "simkd": Weights(ce=1.0, kd=0.0, method=9.0),
        "crd": Weights(ce=0.1, kd=0.0, method=9.0),
    }

    def __init__(self, *, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.criterion = LSKDLoss(temperature=temperature)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of the two networks' standardised logits."""
        return {"loss": self.criterion(student.logits, teacher.logits)}
