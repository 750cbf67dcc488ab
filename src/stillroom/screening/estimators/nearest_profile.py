"""Nearest profile: a drug binds what the drug most similar to it binds.

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

__all__ = ["NearestProfile", "nearest_profile"]


def nearest_profile(labels: Array, similarity: Array) -> Array:
    """Return the profile of each row's nearest other row, times how near that is.

    ``F[d] = S[d, d*] Y[d*]`` with ``d*`` the most similar other row that has a 1. Rows equally near share the vote, so
    that the order of rows does not matter; a row similar to none scores 0.

    Args:
        labels: Training labels, a row for each row of the similarity.
        similarity: Symmetric; values below 0 count as 0.

    Shapes:
        labels [m, n], similarity [m, m] -> [m, n].

    Example:
        >>> nearest_profile(np.eye(2), np.array([[1.0, 0.2], [0.2, 1.0]])).tolist()
        [[0.0, 0.2], [0.2, 0.0]]
    """
    votes = voting_similarity(labels, similarity)
    best = votes.max(axis=1, keepdims=True)
    nearest = (votes == best) & (best > 0)
    shared = np.maximum(nearest.sum(axis=1, keepdims=True), 1)
    scores: Array = (nearest * (best / shared)) @ labels
    return scores


class NearestProfile(MatrixScreener):
    """The interactions of the most similar drug, and of the most similar target.

    ``S_d[d, d*] Y[d*, t]`` and ``S_t[t, t*] Y[d, t*]``, averaged. See ``weighted_profile`` for all neighbours at once.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        side: Whose neighbours are asked: both, drug or target.
        combine: How the two sides become one score: mean or max.

    Example:
        >>> similarity = np.array([[1.0, 0.2], [0.2, 1.0]])
        >>> NearestProfile(similarity, np.eye(2), side="drug").fit_matrix([[1, 0], [0, 0]]).scores_.tolist()
        [[0.0, 0.0], [0.2, 0.0]]
    """

    card = Card(
        name="nearest_profile",
        summary="The interactions of the most similar other drug and target.",
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
        return profile_scores(nearest_profile, labels, drugs, targets, self.side, self.combine)
