"""BLM-NII: local models of drugs and of targets, with profiles inferred from neighbours for those without any.

J.-P. Mei, C.-K. Kwoh, P. Yang, X.-L. Li, J. Zheng, "Drug-target interaction prediction by learning from local
information and neighbors", Bioinformatics 29(2), 2013.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import numpy as np

from stillroom.cards import Card, Paper, Quirk
from stillroom.screening._checks import Array, Mask, one_of
from stillroom.screening.estimators._rls import check_rls_options, profile_and_similarity, rls_side
from stillroom.screening.estimators._screener import Grid, MatrixScreener
from stillroom.screening.kernels.algebra import PSD

__all__ = ["BLMNII", "Combine", "blm_nii_side", "combined", "inferred_profiles"]

Combine = Literal["max", "mean"]


def inferred_profiles(labels: Array, similarity: Array) -> Array:
    """Return the labels with an inferred profile for every new drug (a row without any 1).

    ``l = S[d, train] Y[train]``, scaled to 0..1 as ``(l - min) / (max - min)``; a constant ``l`` says nothing and
    leaves the row at zero.

    Shapes:
        labels [m, n], similarity [m, m] -> [m, n].

    Example:
        >>> similarity = np.array([[1.0, 0.2], [0.2, 1.0]])
        >>> inferred_profiles(np.array([[1.0, 0.0], [0.0, 0.0]]), similarity).tolist()
        [[1.0, 0.0], [1.0, 0.0]]
    """
    new = ~labels.any(axis=1)
    neighbours = similarity[new][:, ~new] @ labels[~new]
    low = neighbours.min(axis=1, keepdims=True)
    spread = neighbours.max(axis=1, keepdims=True) - low
    completed: Array = labels.astype(np.float64)
    completed[new] = np.divide(neighbours - low, spread, out=np.zeros_like(neighbours), where=spread > 0)
    return completed


def blm_nii_side(
    labels: Array, similarity: Array, *, alpha: float = 0.5, gamma: float = 1.0, sigma: float = 1.0, psd: PSD = "clip"
) -> Array:
    """Return the scores of one side: of drugs, or of targets when called with the transposed labels.

    The kernel is ``alpha S + (1 - alpha) GIP(Y)``, with the rows and columns of new drugs taken from ``S``; the labels
    regressed on are those of :func:`inferred_profiles`.

    Shapes:
        labels [m, n], similarity [m, m] -> [m, n].
    """
    kernel = profile_and_similarity(labels, similarity, alpha=alpha, gamma=gamma, replace_new=True, psd=psd)
    return rls_side(kernel, inferred_profiles(labels, similarity), sigma=sigma)


def combined(by_drug: Array, by_target: Array, how: Combine) -> Array:
    """Return the larger score of the two sides, or their mean."""
    scores: Array = np.maximum(by_drug, by_target) if how == "max" else (by_drug + by_target) / 2
    return scores


class BLMNII(MatrixScreener):
    """Bipartite local models with neighbour-based interaction-profile inferring.

    Regularised least squares over drugs and over targets; a drug or target without known interactions gets a profile
    inferred from those of its neighbours, where plain local models would have nothing to learn from. The score is the
    larger of the two sides.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        alpha: Weight of the similarity beside the interaction profile kernel, 0..1.
        gamma: Bandwidth of the profile kernel.
        sigma: Strength of the regularisation.
        combine: How the two sides become one score: max or mean.
        psd: How negative eigenvalues of the kernels are mended: clip, shift, flip or none.

    Example:
        >>> similarity = np.array([[1.0, 0.2], [0.2, 1.0]])
        >>> model = BLMNII(similarity, np.eye(2)).fit_matrix([[1, 0], [0, 0]])  # the second drug is new
        >>> bool(model.scores_[1, 0] > model.scores_[1, 1])
        True
    """

    card = Card(
        name="blm_nii",
        summary="Local models of drugs and of targets; new ones get a profile inferred from their neighbours.",
        papers=(
            Paper(
                title="Drug-target interaction prediction by learning from local information and neighbors",
                authors="J.-P. Mei, C.-K. Kwoh, P. Yang, X.-L. Li, J. Zheng",
                venue="Bioinformatics 29(2)",
                year=2013,
                identifier="doi:10.1093/bioinformatics/bts670",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="a kernel",
                code="rows and columns of new drugs are replaced by those of the similarity, which makes the matrix "
                "indefinite and its inverse nearly singular (PyDTI)",
                default="neither",
                option="psd=none",
            ),
            Quirk(
                paper="alpha 0.5",
                code="alpha 0.7 in the driver of PyDTI, 0.5 in its class",
                default="paper",
                option="alpha=0.7",
            ),
            Quirk(
                paper="profiles are scaled to 0..1",
                code="divides by zero where a profile is constant (PyDTI)",
                default="paper",
            ),
        ),
    )
    grid: ClassVar[Grid] = {"alpha": (0.25, 0.5, 0.75), "sigma": (0.25, 1.0), "combine": ("max", "mean")}

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        alpha: float = 0.5,
        gamma: float = 1.0,
        sigma: float = 1.0,
        combine: Combine = "max",
        psd: PSD = "clip",
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.alpha = alpha
        self.gamma = gamma
        self.sigma = sigma
        self.combine = combine
        self.psd = psd

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        check_rls_options(self.alpha, self.gamma, self.sigma, self.psd)
        one_of("combine", self.combine, get_args(Combine))

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        options: dict[str, Any] = {"alpha": self.alpha, "gamma": self.gamma, "sigma": self.sigma, "psd": self.psd}
        by_drug = blm_nii_side(labels, drugs, **options)
        return combined(by_drug, blm_nii_side(labels.T, targets, **options).T, self.combine)
