"""KD: the teacher's softened class distribution as soft target (Hinton et al., 2014)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._method import Convention, Method, Weights
from stillroom.losses.checks import positive
from stillroom.losses.kl import kd_loss
from stillroom.models.signals import Signals

__all__ = ["KD", "KDLoss"]


class KDLoss(nn.Module):
    """The classical distillation loss :func:`stillroom.losses.kd_loss` with its temperature stored.

    Args:
        temperature: T, softens both distributions.

    Shapes:
        student, teacher: [B, K]; the loss is a scalar.

    Raises:
        InputError: The temperature is not above 0.

    Example:
        >>> import torch
        >>> print(f"{KDLoss(temperature=4.0)(torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0, 0.0]])):.4f}")
        4.1185
    """

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of the student's logits against the teacher's."""
        return kd_loss(student, teacher, temperature=self.temperature)

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"temperature={self.temperature}"


class KD(Method):
    """Classical knowledge distillation: ``L = ce · CE + method · T² KL(p_T ‖ p_S)``.

    G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NeurIPS workshop 2014. The own term
    is the classical loss itself, so the presets leave the shared ``kd`` weight at 0.

    Args:
        temperature: T, softens both distributions.
    """

    card = Card(
        name="kd",
        summary="The student matches the teacher's class distribution softened by a temperature.",
        papers=(
            Paper(
                title="Distilling the Knowledge in a Neural Network",
                authors="G. Hinton, O. Vinyals, J. Dean",
                venue="NeurIPS Deep Learning Workshop",
                year=2014,
                identifier="arXiv:1503.02531",
            ),
            Paper(
                title="A Note on Knowledge Distillation Loss Function for Object Classification",
                authors="D. Chen",
                venue="arXiv preprint",
                year=2021,
                identifier="arXiv:2109.06458",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="One weighted sum of the hard-label and the soft-target loss; the weights are left open.",
                code="Two weightings are in use: 1, 1 (SimKD, SemCKD) and 0.1, 0.9 (CRD benchmark, mdistiller, HKD).",
                default="code",
                option="the weight convention, simkd or crd",
            ),
        ),
    )
    presets: ClassVar[dict[Convention, Weights]] = {
        "simkd": Weights(ce=1.0, kd=0.0, method=1.0),
        "crd": Weights(ce=0.1, kd=0.0, method=0.9),
    }

    def __init__(self, *, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.criterion = KDLoss(temperature=temperature)

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the classical loss of the two networks' logits."""
        return {"loss": self.criterion(student.logits, teacher.logits)}
