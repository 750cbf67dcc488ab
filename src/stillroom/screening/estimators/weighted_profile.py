"""Weighted profile: a drug binds what the drugs similar to it bind.

Y. Yamanishi, M. Araki, A. Gutteridge, W. Honda, M. Kanehisa, "Prediction of drug-target interaction networks from the
integration of chemical and genomic spaces", Bioinformatics 24(13), 2008.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from stillroom.cards import Card
from stillroom.screening._checks import Array, Mask
from stillroom.screening.estimators._profiles import (
    PROFILE_PAPER,
    Side,
    check_profile_options,
    profile_scores,
    voting_similarity,
)
from stillroom.screening.estimators._screener import Grid, MatrixScreener
from stillroom.screening.estimators.blm_nii import Combine

__all__ = ["WeightedProfile", "weighted_profile"]


def weighted_profile(labels: Array, similarity: Array) -> Array:
    """Return the mean profile of all other rows, weighted by how similar they are.

    ``F[d] = sum_j S[d, j] Y[j] / sum_j S[d, j]`` over the other rows ``j`` that have a 1. A row similar to none of them
    scores 0.

    Args:
        labels: Training labels, a row for each row of the similarity.
        similarity: Symmetric; values below 0 count as 0.

    Shapes:
        labels [m, n], similarity [m, m] -> [m, n].

    Example:
        >>> similarity = np.array([[1.0, 0.1, 0.3], [0.1, 1.0, 0.0], [0.3, 0.0, 1.0]])
        >>> weighted_profile(np.eye(3), similarity)[0].round(4).tolist()
        [0.0, 0.25, 0.75]
    """
    votes = voting_similarity(labels, similarity)
    total = votes.sum(axis=1, keepdims=True)
    weights = np.divide(votes, total, out=np.zeros_like(votes), where=total > 0)
    scores: Array = weights @ labels
    return scores


class WeightedProfile(MatrixScreener):
    """The interactions of all other drugs and targets, weighted by similarity.

    ``sum_j S_d[d, j] Y[j, t] / sum_j S_d[d, j]`` and the same over targets, averaged. See ``nearest_profile`` for the
    nearest neighbour alone.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        side: Whose neighbours are asked: both, drug or target.
        combine: How the two sides become one score: mean or max.

    Example:
        >>> similarity = np.array([[1.0, 0.2], [0.2, 1.0]])
        >>> WeightedProfile(similarity, np.eye(2), side="drug").fit_matrix([[1, 0], [0, 0]]).scores_.tolist()
        [[0.0, 0.0], [1.0, 0.0]]
    """

    card = Card(
        name="weighted_profile",
        summary="The interactions of all other drugs and targets, weighted by similarity.",
        papers=(PROFILE_PAPER,),
        standing="derived",
    )
    grid: ClassVar[Grid] = {"side": ("both", "drug", "target"), "combine": ("mean", "max")}

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        side: Side = "both",
        combine: Combine = "mean",
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.side = side
        self.combine = combine

    def check_options(self) -> None:
        """Refuse options that are none of their choices."""
        check_profile_options(self.side, self.combine)

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        return profile_scores(weighted_profile, labels, drugs, targets, self.side, self.combine)
