"""Naive Bayes on pairs: drug and target are independent given whether they interact, each with a kernel density.

J.-P. Mei, C.-K. Kwoh, P. Yang, X.-L. Li, "Classification and its applications for drug-target interaction
identification", arXiv 1502.04469, 2015.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from stillroom.cards import Card, Paper
from stillroom.screening._checks import Array, Mask, in_range
from stillroom.screening.estimators._sampling import check_both_labels
from stillroom.screening.estimators._screener import Grid, MatrixScreener

__all__ = ["KernelNaiveBayes", "naive_bayes_log_odds"]


def naive_bayes_log_odds(
    labels: Array, observed: Mask, drug_similarity: Array, target_similarity: Array, *, smoothing: float = 0.01
) -> Array:
    """Return the log-odds of an interaction, for all pairs.

    With ``P`` the observed pairs labelled 1 and ``N`` those labelled 0::

        log |P| / |N| + log p(d | P) / p(d | N) + log p(t | P) / p(t | N)

    where ``p(d | P) = mean over (d', t') in P of K_d[d, d'] + smoothing``, and so on. A density is not negative:
    similarities below 0 count as 0. A pair that is itself observed counts towards its own density.

    Args:
        labels: Training labels, 0 where not observed.
        observed: Which pairs take part.
        drug_similarity: The kernel of the drugs' densities.
        target_similarity: The kernel of the targets' densities.
        smoothing: Added to each density, so that a drug or target similar to none stays finite.

    Shapes:
        labels [m, n], observed [m, n], drug_similarity [m, m], target_similarity [n, n] -> [m, n].

    Raises:
        InputError: No observed pair is labelled 0.

    Example:
        >>> naive_bayes_log_odds(np.eye(2), np.ones((2, 2), dtype=bool), np.eye(2), np.eye(2)).tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
    check_both_labels(labels, observed)
    absent = observed - labels
    prior = np.log(labels.sum() / absent.sum())

    def log_ratio(kernel: Array, axis: int) -> Array:
        densities = (kernel @ members.sum(axis=axis) / members.sum() for members in (labels, absent))
        interacting, others = (np.log(density + smoothing) for density in densities)
        ratio: Array = interacting - others
        return ratio

    by_drug = log_ratio(np.maximum(drug_similarity, 0.0), 1)
    by_target = log_ratio(np.maximum(target_similarity, 0.0), 0)
    odds: Array = prior + by_drug[:, None] + by_target
    return odds


class KernelNaiveBayes(MatrixScreener):
    """Naive Bayes with a kernel density of drugs and one of targets in each class.

    The log-odds of drug and target add up, so all drugs rank the targets alike: this measures how far popularity among
    similar ones goes, and is the line other methods must pass.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        smoothing: Added to each density, above 0.

    Example:
        >>> model = KernelNaiveBayes(np.eye(2), np.eye(2)).fit_matrix([[1, 1], [1, 0]])
        >>> model.predict_proba([[0, 0], [1, 1]])[:, 1].round(2).tolist()
        [1.0, 0.26]
    """

    card = Card(
        name="naive_bayes",
        summary="Kernel densities of drugs and of targets, independent given whether a pair interacts.",
        papers=(
            Paper(
                title="Classification and its applications for drug-target interaction identification",
                authors="J.-P. Mei, C.-K. Kwoh, P. Yang, X.-L. Li",
                venue="arXiv",
                year=2015,
                identifier="arXiv:1502.04469",
            ),
        ),
        standing="reconstructed",
    )
    grid: ClassVar[Grid] = {"smoothing": (0.001, 0.01, 0.1)}
    threshold: ClassVar[float] = 0.0

    def __init__(self, drug_similarity: Any = None, target_similarity: Any = None, *, smoothing: float = 0.01) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.smoothing = smoothing

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        in_range("smoothing", self.smoothing, 0, above=True)

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of label 0 and of label 1 of pairs, [P, 2]: the log-odds through the sigmoid."""
        from scipy.special import expit

        scores = self.score_pairs(X)
        return np.column_stack([expit(-scores), expit(scores)])

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        return naive_bayes_log_odds(labels, observed, drugs, targets, smoothing=self.smoothing)
