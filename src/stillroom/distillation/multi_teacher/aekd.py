"""AEKD: weights under which the teachers' gradients disagree least."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.multi_teacher._method import ManyTeachers
from stillroom.distillation.multi_teacher.weights import gradient_weights
from stillroom.losses.checks import positive

__all__ = ["AEKD"]


class AEKD(ManyTeachers):
    """Adaptive ensemble in gradient space: ``L = gamma · CE + alpha · Σ_k w_k KL_T(z_S ‖ z_k)``.

    S. Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", NeurIPS 2020, for
    logits. With ``g_k`` the mean gradient of teacher k's term at the student's logits,
    ``w = argmin ‖Σ_k w_k g_k‖²`` with ``Σ w = 1, 0 ≤ w_k ≤ tolerance``; no gradient flows through w. All samples of a
    batch share the weights.

    Args:
        temperature: T, softens all distributions.
        gamma: Weight of the cross-entropy.
        alpha: Weight of the distillation term.
        tolerance: Largest weight of a teacher, C in the paper.
        normalize: Compare the directions of the gradients only.
    """

    card: ClassVar[Card] = Card(
        name="aekd",
        summary="Weighs the teachers so that their combined gradient at the student's logits is shortest.",
        papers=(
            Paper(
                title="Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space",
                authors="S. Du, S. You, X. Li, J. Wu, F. Wang, C. Qian, C. Zhang",
                venue="NeurIPS",
                year=2020,
                identifier="NeurIPS 2020, 12345–12355",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="A quadratic programme with a bound on each weight.",
                code="Hands it to a one-class support vector machine, which stops early and computes in float32.",
                default="paper",
            ),
            Quirk(
                paper="Gradients as they are.",
                code="Gradients as they are for logits, of unit length for hints.",
                default="code",
                option="normalize",
            ),
        ),
    )

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        gamma: float = 1.0,
        alpha: float = 1.0,
        tolerance: float = 0.6,
        normalize: bool = False,
    ) -> None:
        super().__init__(temperature=temperature, gamma=gamma, alpha=alpha)
        self.tolerance = positive("tolerance", tolerance)
        self.normalize = normalize

    def weigh(self, student: Tensor, teachers: Tensor, target: Tensor) -> Tensor:
        """Return the weights of this batch, the same for every sample."""
        return gradient_weights(
            student, teachers, temperature=self.temperature, tolerance=self.tolerance, normalize=self.normalize
        )
