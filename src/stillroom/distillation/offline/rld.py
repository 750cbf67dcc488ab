"""RLD: refined logit distillation (Sun et al., ICCV 2025)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from stillroom.cards import Card, Paper, Quirk
from stillroom.data.batch import Batch
from stillroom.distillation.offline._method import Convention, Method, Weights
from stillroom.errors import InputError
from stillroom.losses.checks import check_logits, check_target, full_precision, not_negative, positive
from stillroom.losses.kl import confidence_kl, masked_kl, standardise_logits
from stillroom.losses.weighted import weighted_sum
from stillroom.models.signals import Signals

__all__ = ["RLD", "RLDLoss", "misleading_classes", "rld_loss", "rld_terms"]


def misleading_classes(teacher: Tensor, target: Tensor) -> Tensor:
    """Return which classes the teacher ranks at or above the label, the label included.

    Args:
        teacher: The teacher's logits.
        target: The labels.

    Shapes:
        teacher: [B, K]; target: [B], int64; the result: [B, K], bool.

    Example:
        >>> import torch
        >>> misleading_classes(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([1]))
        tensor([[ True,  True, False]])
    """
    return teacher >= teacher.gather(1, target[:, None])


def rld_terms(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    temperature: float = 4.0,
    alpha_temperature: float = 1.0,
    standardise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return sample-confidence and masked-correlation distillation, unweighted.

    W. Sun, D. Chen, S. Lyu, G. Chen, C. Chen, C. Wang, "Knowledge Distillation with Refined Logits", ICCV 2025. With
    y the label, m the teacher's arg max, ``p = softmax(z / T_a)``, and ``p̂ = softmax(z / T)`` over the classes that
    the teacher ranks strictly below the label::

        SCD = T_a² · mean_b KL((p_T[m], 1 − p_T[m]) ‖ (p_S[y], 1 − p_S[y]))
        MCD = T²   · mean_b KL(p̂_T ‖ p̂_S)

    The teacher's highest confidence goes to the student's true class. A sample whose label the teacher ranks last
    keeps no class, and contributes exactly 0 to MCD and its gradient.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.
        target: The labels.
        temperature: T of the masked term.
        alpha_temperature: T_a of the confidence term.
        standardise: Standardise both networks' logits first, see :func:`stillroom.losses.standardise_logits`.

    Shapes:
        student, teacher: [B, K]; target: [B], int64.

    Returns:
        SCD and MCD, two scalars that include their squared temperatures.

    Raises:
        InputError: The logits cannot be compared, the target does not fit, or a temperature is not above 0.
    """
    check_logits(student, teacher)
    check_target(student, target)
    positive("temperature", temperature)
    positive("alpha_temperature", alpha_temperature)
    teacher = full_precision(teacher.detach())
    if standardise:
        student, teacher = standardise_logits(student), standardise_logits(teacher)
    # The two indices differ on purpose: with the label for both this would be DKD's target-class term.
    scd = confidence_kl(student, teacher, target, teacher.argmax(dim=1), temperature=alpha_temperature)
    mcd = masked_kl(student, teacher, misleading_classes(teacher, target), temperature=temperature)
    return scd, mcd


def rld_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    alpha_temperature: float = 1.0,
    standardise: bool = False,
) -> Tensor:
    """Return ``alpha · SCD + beta · MCD``, see :func:`rld_terms`.

    Args:
        student: Logits of the network that learns.
        teacher: Logits of the network that is imitated; no gradient flows to it.
        target: The labels.
        alpha: Weight of the confidence term.
        beta: Weight of the masked term.
        temperature: T of the masked term.
        alpha_temperature: T_a of the confidence term.
        standardise: Standardise both networks' logits first.

    Shapes:
        student, teacher: [B, K]; target: [B], int64.

    Returns:
        A scalar.

    Raises:
        InputError: As :func:`rld_terms`, or both weights are 0.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[4.0, 0.0, 1.0]])
        >>> print(f"{rld_loss(student, teacher, torch.tensor([0])):.4f}")
        17.5599
    """
    scd, mcd = rld_terms(
        student,
        teacher,
        target,
        temperature=temperature,
        alpha_temperature=alpha_temperature,
        standardise=standardise,
    )
    return weighted_sum((alpha, scd), (beta, mcd))


class RLDLoss(nn.Module):
    """:func:`rld_loss` with its options stored.

    Args:
        alpha: Weight of the confidence term.
        beta: Weight of the masked term.
        temperature: T of the masked term.
        alpha_temperature: T_a of the confidence term.
        standardise: Standardise both networks' logits first.

    Shapes:
        student, teacher: [B, K]; target: [B], int64; the loss is a scalar.

    Raises:
        InputError: A weight is negative, both are 0, or a temperature is not above 0.
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        alpha_temperature: float = 1.0,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.alpha = not_negative("alpha", alpha)
        self.beta = not_negative("beta", beta)
        if alpha == beta == 0:
            raise InputError("alpha and beta are both 0; give at least one term a weight")
        self.temperature = positive("temperature", temperature)
        self.alpha_temperature = positive("alpha_temperature", alpha_temperature)
        self.standardise = standardise

    def terms(self, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return SCD and MCD, unweighted."""
        return rld_terms(
            student,
            teacher,
            target,
            temperature=self.temperature,
            alpha_temperature=self.alpha_temperature,
            standardise=self.standardise,
        )

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the student's logits against the teacher's and the labels."""
        scd, mcd = self.terms(student, teacher, target)
        return weighted_sum((self.alpha, scd), (self.beta, mcd))

    def extra_repr(self) -> str:
        """Show the hyperparameters."""
        return (
            f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}, "
            f"alpha_temperature={self.alpha_temperature}, standardise={self.standardise}"
        )


class RLD(Method):
    """Refined logit distillation: ``L = CE + min(epoch / 20, 1) · (alpha · SCD + beta · MCD)``.

    Defaults are those of CIFAR-100. On ImageNet: ``beta`` 0.5 (ResNet-34 → ResNet-18) or 2 (ResNet-50 → MobileNetV1),
    both temperatures 1, one warm-up epoch. With ``standardise`` the released values are ``alpha`` 9, ``beta`` 72 and
    both temperatures 2; the option alone changes none of them.

    Args:
        alpha: Weight of the confidence term.
        beta: Weight of the masked term.
        temperature: T of the masked term.
        alpha_temperature: T_a of the confidence term.
        standardise: Standardise both networks' logits first.
        warmup_epochs: Epochs over which the term grows linearly to its full weight; 0 for none.
    """

    card = Card(
        name="rld",
        summary="The labels decide what a student may learn from a wrong teacher, whose logits stay as they are.",
        papers=(
            Paper(
                title="Knowledge Distillation with Refined Logits",
                authors="W. Sun, D. Chen, S. Lyu, G. Chen, C. Chen, C. Wang",
                venue="ICCV",
                year=2025,
                identifier="arXiv:2408.07703",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="The documented command sets the confidence term's temperature to that of the masked term, 4.",
                code="The configuration files leave it at 1.",
                default="code",
                option="alpha_temperature",
            ),
            Quirk(
                paper="The probability of not being the class is a sum of probabilities.",
                code="It takes the logarithm of that sum, which underflows to inf or NaN at large logit gaps.",
                default="paper",
            ),
            Quirk(
                paper="Removed classes take no part.",
                code="Their logits become -1e9, which float16 cannot hold.",
                default="paper",
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
        alpha_temperature: float = 1.0,
        standardise: bool = False,
        warmup_epochs: int = 20,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.alpha_temperature, self.standardise = alpha_temperature, standardise
        self.criterion = RLDLoss(
            alpha=alpha,
            beta=beta,
            temperature=temperature,
            alpha_temperature=alpha_temperature,
            standardise=standardise,
        )
        self.warmup_epochs = int(not_negative("warmup_epochs", warmup_epochs))

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted loss with its two terms."""
        scd, mcd = self.criterion.terms(student.logits, teacher.logits, batch.target)
        loss = weighted_sum((self.criterion.alpha, scd), (self.criterion.beta, mcd))
        return {"loss": loss, "scd": scd.detach(), "mcd": mcd.detach()}

    def extra_repr(self) -> str:
        """Show the hyperparameters that the loss does not."""
        return f"warmup_epochs={self.warmup_epochs}"
