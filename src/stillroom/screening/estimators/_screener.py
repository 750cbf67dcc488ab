"""What all estimators of drug-target pairs share: labels in, scores out, in scikit-learn's manners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stillroom.cards import Card
from stillroom.errors import InputError
from stillroom.screening._checks import (
    Array,
    Mask,
    checked_labels,
    checked_mask,
    checked_numbers,
    checked_pairs,
    checked_similarity,
)
from stillroom.screening._sklearn import BaseEstimator, ClassifierMixin, check_is_fitted

__all__ = ["Grid", "MatrixScreener", "ProbabilityMixin", "Screener"]

Grid = Mapping[str, Sequence[Any]]  # hyperparameter -> values worth trying


class Screener(ClassifierMixin, BaseEstimator, ABC):  # type: ignore[misc]  # scikit-learn brings no types
    """A classifier of drug-target pairs.

    ``X`` holds pairs of positions, [P, 2]: the row of the drug in ``drug_similarity`` and that of the target in
    ``target_similarity``; ``y`` their labels, 0 or 1. The pairs that are fitted are the observed ones; all others count
    as unknown. Cross-validation, pipelines and searches of scikit-learn work with that. Whoever has the labels as a
    matrix hands it to :meth:`fit_matrix`.

    Subclasses take the two similarities and then, by keyword, their hyperparameters; they carry the method's ``card``
    and the ``grid`` of values worth trying.
    """

    card: ClassVar[Card]
    grid: ClassVar[Grid] = {}
    threshold: ClassVar[float] = 0.5  # the score from which a pair is predicted to interact

    drug_similarity: Any
    target_similarity: Any

    def __sklearn_clone__(self) -> Screener:
        """Copy the options and share the similarities, which are only read: a search would copy them every time."""
        return type(self)(**self.get_params(deep=False))

    def fit(self, X: Any, y: Any) -> Screener:
        """Learn from observed pairs.

        Args:
            X: Positions of drug and target, [P, 2].
            y: Labels, [P].

        Raises:
            InputError: Something handed over is wrong; the message names the row.
        """
        shape = self._shape()
        pairs = checked_pairs(X, shape)
        given = checked_numbers(y, "y")
        if given.shape != (len(pairs),):
            raise InputError(f"y has shape {list(given.shape)} for {len(pairs)} pairs; one label each")
        places = pairs[:, 0] * shape[1] + pairs[:, 1]
        order = np.argsort(places, kind="stable")
        again = np.flatnonzero(np.diff(places[order]) == 0)
        if len(again):
            first, second = sorted((int(order[again[0]]), int(order[again[0] + 1])))
            raise InputError(f"rows {first} and {second} of X (counted from 0) are the same pair; keep one")
        labels, observed = np.zeros(shape), np.zeros(shape, dtype=bool)
        labels[pairs[:, 0], pairs[:, 1]] = given
        observed[pairs[:, 0], pairs[:, 1]] = True
        return self.fit_matrix(labels, observed)

    def fit_matrix(self, labels: Any, observed: Any = None) -> Screener:
        """Learn from a matrix of labels.

        Args:
            labels: Zeros and ones, [drugs, targets].
            observed: Which of them may be seen, [drugs, targets]; all unless given. The others count as 0, and methods
                that tell unknown from 0 leave them out.

        Raises:
            InputError: Something handed over is wrong; the message names the row.
        """
        self.check_options()
        # Only then are labels hidden: a 1 nobody may see still has to be a label.
        values = checked_labels(labels)
        m, n = values.shape
        mask = checked_mask(observed, (m, n))
        seen = values * mask
        if not seen.any():
            raise InputError("no observed pair is labelled 1; at least one known interaction is needed")
        drugs = checked_similarity(self.drug_similarity, m, "drug_similarity")
        targets = checked_similarity(self.target_similarity, n, "target_similarity")
        self.classes_: NDArray[np.int64] = np.array([0, 1])
        self.n_features_in_ = 2
        self._fit(seen, mask, drugs, targets)
        self.shape_ = (m, n)  # last: a fit that failed is none
        return self

    def decision_function(self, X: Any) -> Array:
        """Return the scores of pairs above the threshold of the prediction, [P]: above 0 the answer is 1."""
        return self.score_pairs(X) - self.threshold

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the predicted labels of pairs, [P]."""
        return (self.decision_function(X) > 0).astype(np.int64)

    def score_pairs(self, X: Any) -> Array:
        """Return the scores of pairs, [P], as the method's equations give them."""
        check_is_fitted(self, "shape_")
        return self._score(checked_pairs(X, self.shape_))

    def check_options(self) -> None:
        """Refuse impossible hyperparameters before anything is computed.

        Raises:
            InputError: One is outside its range.
        """

    def _shape(self) -> tuple[int, int]:
        drugs = checked_similarity(self.drug_similarity, None, "drug_similarity")
        targets = checked_similarity(self.target_similarity, None, "target_similarity")
        return len(drugs), len(targets)

    @abstractmethod
    def _fit(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> None:
        """Learn from checked labels (0 where not observed) and symmetric similarities."""

    @abstractmethod
    def _score(self, pairs: NDArray[np.intp]) -> Array:
        """Return the scores of checked pairs."""

    def __sklearn_tags__(self) -> Any:
        """Say that X holds pairs of positions, two classes, and no arbitrary features."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.two_d_array = False  # random numbers are no positions
        tags.input_tags.categorical = True
        return tags


class ProbabilityMixin:
    """For methods whose scores are probabilities of an interaction."""

    def predict_proba(self, X: Any) -> Array:
        """Return the probabilities of label 0 and of label 1 of pairs, [P, 2]."""
        scores: Array = self.score_pairs(X)  # type: ignore[attr-defined]  # a screener's
        return np.column_stack([1 - scores, scores])


class MatrixScreener(Screener):
    """An estimator whose fit gives the scores of all pairs at once, kept as ``scores_`` [drugs, targets]."""

    def _fit(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> None:
        self.scores_ = self._scores(labels, observed, drugs, targets)

    def _score(self, pairs: NDArray[np.intp]) -> Array:
        found: Array = self.scores_[pairs[:, 0], pairs[:, 1]]
        return found

    @abstractmethod
    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        """Return the scores of all pairs."""
