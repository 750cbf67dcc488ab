"""RLS-avg: regularised least squares over drugs and over targets, averaged.

T. van Laarhoven, S. B. Nabuurs, E. Marchiori, "Gaussian interaction profile kernels for predicting drug-target
interaction", Bioinformatics 27(21), 2011.
"""

from __future__ import annotations

from typing import Any, ClassVar

from stillroom.cards import Card
from stillroom.screening._checks import Array, Mask
from stillroom.screening.estimators._rls import GIP_PAPER, check_rls_options, profile_and_similarity, rls_side
from stillroom.screening.estimators._screener import Grid, MatrixScreener
from stillroom.screening.kernels.algebra import PSD

__all__ = ["RLSAvg"]


class RLSAvg(MatrixScreener):
    """Regularised least squares on each side, averaged: ``(F_d + F_t) / 2``.

    ``F_d = K_d (K_d + sigma I)^-1 Y`` and ``F_t`` likewise on the transpose, with ``K = alpha S + (1 - alpha) GIP``.
    A drug without known interactions is scored through its similarity; BLM-NII infers a profile for it first.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        alpha: Weight of the similarity beside the interaction profile kernel, 0..1.
        gamma: Bandwidth of the profile kernel.
        sigma: Strength of the regularisation.
        psd: How negative eigenvalues of the kernels are mended: clip, shift, flip or none.

    Example:
        >>> import numpy as np
        >>> model = RLSAvg(np.eye(2), np.eye(2), sigma=0.5).fit([[0, 0], [0, 1], [1, 0], [1, 1]], [1, 0, 0, 1])
        >>> model.predict([[0, 0], [0, 1]]).tolist()
        [1, 0]
    """

    card = Card(
        name="rls_avg",
        summary="Kernel ridge regression over drugs and over targets, averaged.",
        papers=(GIP_PAPER,),
        standing="verified",
    )
    grid: ClassVar[Grid] = {"alpha": (0.25, 0.5, 0.75), "sigma": (0.25, 1.0)}

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        alpha: float = 0.5,
        gamma: float = 1.0,
        sigma: float = 1.0,
        psd: PSD = "clip",
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.alpha = alpha
        self.gamma = gamma
        self.sigma = sigma
        self.psd = psd

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        check_rls_options(self.alpha, self.gamma, self.sigma, self.psd)

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        by_drug, by_target = (
            rls_side(
                profile_and_similarity(rows, similarity, alpha=self.alpha, gamma=self.gamma, psd=self.psd),
                rows,
                sigma=self.sigma,
            )
            for rows, similarity in ((labels, drugs), (labels.T, targets))
        )
        averaged: Array = (by_drug + by_target.T) / 2
        return averaged
