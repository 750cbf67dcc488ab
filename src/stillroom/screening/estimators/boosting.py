"""Gradient boosting on the features of pairs.

J. H. Friedman, "Greedy function approximation: a gradient boosting machine", Annals of Statistics 29(5), 2001.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stillroom.cards import Card, Paper
from stillroom.screening._checks import Array, Mask, in_range
from stillroom.screening.estimators._pair_features import kernel_coordinates, pair_features, pair_probabilities
from stillroom.screening.estimators._sampling import check_sampling, sampled_pairs
from stillroom.screening.estimators._screener import Grid, ProbabilityMixin, Screener

__all__ = ["PairwiseBoosting"]


class PairwiseBoosting(ProbabilityMixin, Screener):
    """Gradient-boosted trees on pairs, known interactions against sampled unknown pairs.

    The classifier one would take off the shelf. A pair is described by the leading coordinates of its drug and its
    target in the feature spaces of the similarities. See ``forest`` for independent trees.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        trees: How many.
        learning_rate: What each tree's correction is multiplied by.
        components: Coordinates of a drug, and of a target.
        negatives: Observed pairs labelled 0 that are drawn for each interaction.
        random_state: Seed of the draws.

    Example:
        >>> labels = np.kron(np.diag([1.0, 0.0]), np.ones((8, 8)))  # the first drugs bind the first targets
        >>> similarity = np.kron(np.eye(2), np.ones((8, 8)))
        >>> model = PairwiseBoosting(similarity, similarity).fit_matrix(labels)
        >>> model.predict([[0, 0], [0, 8]]).tolist()
        [1, 0]
    """

    card = Card(
        name="boosting",
        summary="Gradient-boosted trees on coordinates of drug and target.",
        papers=(
            Paper(
                title="Greedy function approximation: a gradient boosting machine",
                authors="J. H. Friedman",
                venue="Annals of Statistics 29(5)",
                year=2001,
                identifier="doi:10.1214/aos/1013203451",
            ),
        ),
        standing="derived",
    )
    grid: ClassVar[Grid] = {"trees": (50, 100), "negatives": (5.0, 20.0)}

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        trees: int = 50,
        learning_rate: float = 0.2,
        components: int = 30,
        negatives: float = 10.0,
        random_state: int = 0,
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.trees = trees
        self.learning_rate = learning_rate
        self.components = components
        self.negatives = negatives
        self.random_state = random_state

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        in_range("trees", self.trees, 1, whole=True)
        in_range("learning_rate", self.learning_rate, 0, 1, above=True)
        in_range("components", self.components, 1, whole=True)
        check_sampling(self.negatives, self.random_state)

    def _fit(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        generator = np.random.default_rng(self.random_state)
        pairs, known = sampled_pairs(labels, observed, generator, negatives=self.negatives)
        self.drug_features_ = kernel_coordinates(drugs, self.components)
        self.target_features_ = kernel_coordinates(targets, self.components)
        # Stopping early would switch itself on above 10 000 pairs and hold some of the few interactions out.
        boosting = HistGradientBoostingClassifier(
            max_iter=self.trees,
            learning_rate=self.learning_rate,
            early_stopping=False,
            random_state=self.random_state,
        )
        self.boosting_ = boosting.fit(pair_features(self.drug_features_, self.target_features_, pairs), known)

    def _score(self, pairs: NDArray[np.intp]) -> Array:
        return pair_probabilities(self.boosting_, self.drug_features_, self.target_features_, pairs)
