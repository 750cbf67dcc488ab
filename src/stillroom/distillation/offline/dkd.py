"""DKD: decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._method import Convention, Method, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import check_logits, check_target, not_negative, positive
from stillroom.losses.kl import confidence_kl, masked_kl, standardise_logits
from stillroom.losses.weighted import weighted_sum
from stillroom.models.signals import Signals

__all__ = ["DKD", "DKDLoss", "dkd_loss", "dkd_terms"]


def dkd_terms(
    student: Tensor, teacher: Tensor, target: Tensor, *, temperature: float = 4.0, standardise: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the target-class and the non-target-class part of the KD loss, unweighted.

    B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge Distillation", CVPR 2022. With
    ``p = softmax(z / T)``, y the label and ``p̂`` the softmax over the K − 1 other classes::

        TCKD = T² · mean_b KL((p_T[y], 1 − p_T[y]) ‖ (p_S[y], 1 − p_S[y]))
        NCKD = T² · mean_b KL(p̂_T ‖ p̂_S)

    Per sample, the classical loss is ``KD = TCKD + (1 − p_T[y]) · NCKD``.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.
        target: The labels.
        temperature: T, softens all distributions.
        standardise: Standardise both networks' logits first, see :func:`stillroom.losses.standardise_logits`.

    Shapes:
        student, teacher: [B, K]; target: [B], int64.

    Returns:
        TCKD and NCKD, two scalars that include T².

    Raises:
        InputError: The logits cannot be compared, the target does not fit, or the temperature is not above 0.
    """
    check_logits(student, teacher)
    check_target(student, target)
    positive("temperature", temperature)
    if standardise:
        student, teacher = standardise_logits(student), standardise_logits(teacher.detach())
    is_target = torch.arange(student.shape[1], device=target.device) == target[:, None]
    tckd = confidence_kl(student, teacher, target, target, temperature=temperature)
    nckd = masked_kl(student, teacher, is_target, temperature=temperature)
    return tckd, nckd


def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardise: bool = False,
) -> Tensor:
    """Return ``alpha · TCKD + beta · NCKD``, see :func:`dkd_terms`.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.
        target: The labels.
        alpha: Weight of the target-class term.
        beta: Weight of the non-target-class term.
        temperature: T, softens all distributions.
        standardise: Standardise both networks' logits first.

    Shapes:
        student, teacher: [B, K]; target: [B], int64.

    Returns:
        A scalar.

    Raises:
        InputError: As :func:`dkd_terms`, or both weights are 0.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[4.0, 0.0, 1.0]])
        >>> print(f"{dkd_loss(student, teacher, torch.tensor([0]), beta=2.0):.4f}")
        6.1398
    """
    tckd, nckd = dkd_terms(student, teacher, target, temperature=temperature, standardise=standardise)
    return weighted_sum((alpha, tckd), (beta, nckd))


class DKDLoss(nn.Module):
    """:func:`dkd_loss` with its options stored.

    Args:
        alpha: Weight of the target-class term.
        beta: Weight of the non-target-class term.
        temperature: T, softens all distributions.
        standardise: Standardise both networks' logits first.

    Shapes:
        student, teacher: [B, K]; target: [B], int64; the loss is a scalar.

    Raises:
        InputError: A weight is negative, both are 0, or the temperature is not above 0.
    """

    def __init__(
        self, *, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, standardise: bool = False
    ) -> None:
        super().__init__()
        self.alpha = not_negative("alpha", alpha)
        self.beta = not_negative("beta", beta)
        if alpha == beta == 0:
            raise InputError("alpha and beta are both 0; give at least one term a weight")
        self.temperature = positive("temperature", temperature)
        self.standardise = standardise

    def terms(self, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return TCKD and NCKD, unweighted."""
        return dkd_terms(student, teacher, target, temperature=self.temperature, standardise=self.standardise)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the student's logits against the teacher's and the labels."""
        tckd, nckd = self.terms(student, teacher, target)
        return weighted_sum((self.alpha, tckd), (self.beta, nckd))

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}, standardise={self.standardise}"


class DKD(Method):
    """Decoupled knowledge distillation: ``L = CE + min(epoch / 20, 1) · (alpha · TCKD + beta · NCKD)``.

    Released ``beta`` for other pairs on CIFAR-100: 2 for resnet56 → resnet20 and resnet110 → resnet32; 6 for VGG-13 →
    VGG-8, VGG-13 → MobileNetV2 and WRN-40-2 → WRN-16-2 or WRN-40-1. On ImageNet (ResNet-34 → ResNet-18): ``beta`` 0.5,
    ``temperature`` 1, one warm-up epoch. With ``standardise`` the released values are ``alpha`` 9, ``beta`` 72 and
    ``temperature`` 2; the option alone changes none of them.

    Args:
        alpha: Weight of the target-class term.
        beta: Weight of the non-target-class term.
        temperature: T, softens all distributions.
        standardise: Standardise both networks' logits first.
        warmup_epochs: Epochs over which the term grows linearly to its full weight; 0 for none.
    """

    card = Card(
        name="dkd",
        summary="The KD loss split into a target-class and a non-target-class term with weights of their own.",
        papers=(
            Paper(
                title="Decoupled Knowledge Distillation",
                authors="B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang",
                venue="CVPR",
                year=2022,
                identifier="arXiv:2203.08679",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The probability of not being the target is a sum of probabilities.",
                code="It takes the logarithm of that sum, which underflows to inf or NaN at large logit gaps.",
                default="paper",
            ),
            Quirk(
                paper="The target class takes no part in the non-target distribution.",
                code="1000 is subtracted from the target's logit, so it returns once the gap exceeds that.",
                default="paper",
            ),
            Quirk(
                paper="beta is chosen by the pair of networks.",
                code="The configuration files carry 2, 6 or 8 by pair; 8 is the most frequent.",
                default="code",
                option="beta",
            ),
        ),
    )
    # Only the CRD-style code base has this method; it has no classical KD term under either convention.
    presets: ClassVar[dict[Convention, Weights]] = {
        "simkd": Weights(ce=1.0, kd=0.0, method=1.0),
        "crd": Weights(ce=1.0, kd=0.0, method=1.0),
    }

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        standardise: bool = False,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature, self.standardise = alpha, beta, temperature, standardise
        self.criterion = DKDLoss(alpha=alpha, beta=beta, temperature=temperature, standardise=standardise)
        self.warmup_epochs = int(not_negative("warmup_epochs", warmup_epochs))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss with its two terms."""
        tckd, nckd = self.criterion.terms(student.logits, teacher.logits, batch.target)
        loss = weighted_sum((self.criterion.alpha, tckd), (self.criterion.beta, nckd))
        return {"loss": loss, "tckd": tckd.detach(), "nckd": nckd.detach()}

    def extra_repr(self) -> str:
        """Show the hyperparameters that the loss does not."""
        return f"warmup_epochs={self.warmup_epochs}"
