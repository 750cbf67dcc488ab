"""AVER: the plain average of all teachers."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from stillroom.cards import Card, Paper
from stillroom.distillation.multi_teacher._method import ManyTeachers
from stillroom.distillation.multi_teacher.weights import uniform_weights

__all__ = ["AVER"]


class AVER(ManyTeachers):
    """Average of the teachers' distillation losses: ``L = gamma · CE + alpha · (1/K) Σ_k KL_T(z_S ‖ z_k)``.

    S. You, C. Xu, C. Xu, D. Tao, "Learning from Multiple Teacher Networks", KDD 2017, as the baseline of CA-MKD.

    Args:
        temperature: T, softens all distributions.
        gamma: Weight of the cross-entropy.
        alpha: Weight of the distillation term.
    """

    card: ClassVar[Card] = Card(
        name="aver",
        summary="Every teacher counts the same for every sample.",
        papers=(
            Paper(
                title="Learning from Multiple Teacher Networks",
                authors="S. You, C. Xu, C. Xu, D. Tao",
                venue="KDD, 1285–1294",
                year=2017,
                identifier="doi:10.1145/3097983.3098135",
            ),
        ),
        standing="verified",
    )

    def __init__(self, *, temperature: float = 4.0, gamma: float = 1.0, alpha: float = 1.0) -> None:
        super().__init__(temperature=temperature, gamma=gamma, alpha=alpha)

    def weigh(self, student: Tensor, teachers: Tensor, target: Tensor) -> Tensor:
        """Return 1/K everywhere."""
        return uniform_weights(teachers)
