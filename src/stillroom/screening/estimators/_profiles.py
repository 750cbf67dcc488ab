"""What the nearest and the weighted profile share: which rows vote, and how the two sides become one score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from stillroom.cards import Paper
from stillroom.screening._checks import Array, one_of
from stillroom.screening.estimators.blm_nii import Combine, combined

__all__ = ["PROFILE_PAPER", "Side", "check_profile_options", "profile_scores", "voting_similarity"]

Side = Literal["both", "drug", "target"]

PROFILE_PAPER = Paper(
    title="Prediction of drug-target interaction networks from the integration of chemical and genomic spaces",
    authors="Y. Yamanishi, M. Araki, A. Gutteridge, W. Honda, M. Kanehisa",
    venue="Bioinformatics 24(13)",
    year=2008,
    identifier="doi:10.1093/bioinformatics/btn162",
)


def voting_similarity(labels: Array, similarity: Array) -> Array:
    """Return the similarity of each row to those whose profile it may borrow, and 0 to all others.

    A row does not vote for itself, nor does one without any 1; a similarity below 0 counts as 0.

    Shapes:
        labels [m, n], similarity [m, m] -> [m, m].

    Example:
        >>> voting_similarity(np.eye(2), np.array([[1.0, 0.2], [0.2, 1.0]])).tolist()
        [[0.0, 0.2], [0.2, 0.0]]
    """
    votes: Array = np.maximum(similarity, 0.0) * labels.any(axis=1)
    np.fill_diagonal(votes, 0.0)
    return votes


def profile_scores(
    profile: Callable[[Array, Array], Array], labels: Array, drugs: Array, targets: Array, side: Side, combine: Combine
) -> Array:
    """Return the scores [drugs, targets] of one side, or of both combined.

    Args:
        profile: Borrows profiles for the rows: labels [m, n], similarity [m, m] -> [m, n].
        labels: Training labels, [drugs, targets].
        drugs: Similarities of drugs.
        targets: Similarities of targets.
        side: Whose neighbours are asked.
        combine: How two sides become one score.
    """
    if side == "drug":
        return profile(labels, drugs)
    by_target = profile(labels.T, targets).T
    return by_target if side == "target" else combined(profile(labels, drugs), by_target, combine)


def check_profile_options(side: str, combine: str) -> None:
    """Refuse options that are none of their choices.

    Raises:
        InputError: One is.
    """
    one_of("side", side, get_args(Side))
    one_of("combine", combine, get_args(Combine))
