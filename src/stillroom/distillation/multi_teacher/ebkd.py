"""EBKD: teachers count more the more certain they are."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.multi_teacher._method import ManyTeachers
from stillroom.distillation.multi_teacher.weights import Reduction, entropy_weights

__all__ = ["EBKD"]


class EBKD(ManyTeachers):
    """Entropy-based weights: ``L = gamma · CE + alpha · (1/(B·K)) Σ_b Σ_k w_bk KL_T(z_S ‖ z_k)_b``.

    K. Kwon, H. Na, H. Lee, N. S. Kim, "Adaptive Knowledge Distillation Based on Entropy", ICASSP 2020, as the baseline
    of CA-MKD: ``w_bk = 1 − H_bk / Σ_j H_bj``. A teacher that is certain but wrong counts most.

    Args:
        temperature: T, softens all distributions.
        gamma: Weight of the cross-entropy.
        alpha: Weight of the distillation term.
    """

    card: ClassVar[Card] = Card(
        name="ebkd",
        summary="Weighs each teacher, sample by sample, by how certain it is, right or wrong.",
        papers=(
            Paper(
                title="Adaptive Knowledge Distillation Based on Entropy",
                authors="K. Kwon, H. Na, H. Lee, N. S. Kim",
                venue="ICASSP",
                year=2020,
                identifier="ICASSP 2020, 7409–7413",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="Weights of the teachers.",
                code="Those of a sample sum to K − 1, and the loss is divided by K once more.",
                default="code",
            ),
            Quirk(
                paper="The entropy of a certain teacher is 0.",
                code="Computes 0 · log 0 and gets NaN once a probability underflows.",
                default="paper",
            ),
        ),
    )

    reduction: ClassVar[Reduction] = "mean"

    def __init__(self, *, temperature: float = 4.0, gamma: float = 1.0, alpha: float = 1.0) -> None:
        super().__init__(temperature=temperature, gamma=gamma, alpha=alpha)

    def weigh(self, student: Tensor, teachers: Tensor, target: Tensor) -> Tensor:
        """Return the weights by entropy, which sum to K − 1 for every sample."""
        return entropy_weights(teachers)
