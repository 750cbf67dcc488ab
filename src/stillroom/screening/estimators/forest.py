"""A forest of extremely randomised trees on the features of pairs.

P. Geurts, D. Ernst, L. Wehenkel, "Extremely randomized trees", Machine Learning 63, 2006.
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

__all__ = ["PairwiseForest"]


class PairwiseForest(ProbabilityMixin, Screener):
    """Extremely randomised trees on pairs, known interactions against sampled unknown pairs.

    A pair is described by the leading coordinates of its drug and its target in the feature spaces of the
    similarities; the score is the mean over the trees of the share of interactions in the pair's leaf. See
    ``boosting`` for trees that correct one another.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        trees: How many.
        components: Coordinates of a drug, and of a target.
        negatives: Observed pairs labelled 0 that are drawn for each interaction.
        random_state: Seed of the draws and of the trees.

    Example:
        >>> model = PairwiseForest(np.eye(2), np.eye(2)).fit_matrix(np.eye(2))
        >>> model.predict([[0, 0], [0, 1]]).tolist()
        [1, 0]
    """

    card = Card(
        name="forest",
        summary="Extremely randomised trees on coordinates of drug and target.",
        papers=(
            Paper(
                title="Extremely randomized trees",
                authors="P. Geurts, D. Ernst, L. Wehenkel",
                venue="Machine Learning 63",
                year=2006,
                identifier="doi:10.1007/s10994-006-6226-1",
            ),
        ),
        standing="derived",
    )
    grid: ClassVar[Grid] = {"components": (30, 60), "negatives": (5.0, 20.0)}

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        trees: int = 50,
        components: int = 30,
        negatives: float = 10.0,
        random_state: int = 0,
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.trees = trees
        self.components = components
        self.negatives = negatives
        self.random_state = random_state

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        in_range("trees", self.trees, 1, whole=True)
        in_range("components", self.components, 1, whole=True)
        check_sampling(self.negatives, self.random_state)

    def _fit(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> None:
        from sklearn.ensemble import ExtraTreesClassifier

        generator = np.random.default_rng(self.random_state)
        pairs, known = sampled_pairs(labels, observed, generator, negatives=self.negatives)
        self.drug_features_ = kernel_coordinates(drugs, self.components)
        self.target_features_ = kernel_coordinates(targets, self.components)
        forest = ExtraTreesClassifier(n_estimators=self.trees, random_state=self.random_state)
        self.forest_ = forest.fit(pair_features(self.drug_features_, self.target_features_, pairs), known)

    def _score(self, pairs: NDArray[np.intp]) -> Array:
        return pair_probabilities(self.forest_, self.drug_features_, self.target_features_, pairs)
