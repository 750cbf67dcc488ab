"""NRLMF: logistic matrix factorisation in which neighbours keep near each other.

Y. Liu, M. Wu, C. Miao, P. Zhao, X.-L. Li, "Neighborhood regularized logistic matrix factorization for drug-target
interaction prediction", PLoS Computational Biology 12(2), 2016.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stillroom.cards import Card, Paper, Quirk
from stillroom.errors import TrainingDivergedError
from stillroom.screening._checks import Array, Mask, in_range
from stillroom.screening.estimators._factors import check_factor_options, initial_factors
from stillroom.screening.estimators._screener import Grid, MatrixScreener, ProbabilityMixin

__all__ = [
    "NRLMF",
    "neighborhood_laplacian",
    "nrlmf_fit",
    "nrlmf_gradient",
    "nrlmf_objective",
    "nrlmf_scores",
    "smoothed_factors",
]


def neighborhood_laplacian(similarity: Array, neighbors: int = 5) -> Array:
    """Return the Laplacian of the graph of nearest neighbours.

    ``A`` keeps of each row of ``S`` the largest similarities to others, as far as they are above 0; it is not
    symmetric. Then ``L = (diag(A 1 + A^T 1) - (A + A^T)) / 2``.

    Args:
        similarity: One row for each drug, or target.
        neighbors: How many are kept of each row.

    Shapes:
        similarity [m, m] -> [m, m].

    Example:
        >>> neighborhood_laplacian(np.array([[1.0, 0.5], [0.5, 1.0]]), neighbors=1).tolist()
        [[0.5, -0.5], [-0.5, 0.5]]
    """
    others = similarity.astype(np.float64)
    np.fill_diagonal(others, 0.0)
    nearest = _nearest(others, neighbors)
    kept = np.zeros_like(others)
    np.put_along_axis(kept, nearest, np.maximum(np.take_along_axis(others, nearest, axis=1), 0), axis=1)
    edges = (kept + kept.T) / 2
    laplacian: Array = np.diag(edges.sum(axis=1)) - edges
    return laplacian


def nrlmf_objective(
    drug_factors: Array,
    target_factors: Array,
    labels: Array,
    drug_laplacian: Array,
    target_laplacian: Array,
    *,
    weight_positive: float = 5.0,
    lambda_drug: float = 0.125,
    lambda_target: float = 0.125,
    alpha: float = 0.25,
    beta: float = 0.125,
) -> float:
    """Return what NRLMF makes large, the logarithm of the posterior.

    With ``Z = U V^T`` and ``c`` the weight of a known interaction::

        sum(c Y Z - (1 + (c - 1) Y) log(1 + exp Z)) - lambda_d / 2 ||U||^2 - lambda_t / 2 ||V||^2
            - alpha / 2 tr(U^T L_d U) - beta / 2 tr(V^T L_t V)

    Shapes:
        drug_factors [m, r], target_factors [n, r], labels [m, n], Laplacians [m, m] and [n, n] -> a number.
    """
    odds = drug_factors @ target_factors.T
    # log(1 + exp z) without overflow; NumPy's logaddexp takes five times as long.
    softplus = np.maximum(odds, 0) + np.log1p(np.exp(-np.abs(odds)))
    value = (weight_positive * labels * odds - (1 + (weight_positive - 1) * labels) * softplus).sum()
    for factors, laplacian, weight, near in (
        (drug_factors, drug_laplacian, lambda_drug, alpha),
        (target_factors, target_laplacian, lambda_target, beta),
    ):
        value -= (factors * (weight * factors + near * (laplacian @ factors))).sum() / 2
    return float(value)


@np.errstate(over="ignore")  # exp(-z) of a very small z is infinite, and the sigmoid 0
def nrlmf_gradient(
    own: Array,
    other: Array,
    labels: Array,
    laplacian: Array,
    *,
    weight_positive: float = 5.0,
    weight_factors: float = 0.125,
    weight_neighbors: float = 0.25,
) -> Array:
    """Return the gradient of the objective in one side's factors.

    ``(c Y - (1 + (c - 1) Y) * sigmoid(U V^T)) V - lambda U - alpha L U``.

    Args:
        own: Factors of the side, U.
        other: Those of the other side, V.
        labels: Zeros and ones; transposed for targets.
        laplacian: Of the side's neighbourhoods, L.
        weight_positive: Weight of a known interaction, c.
        weight_factors: Strength of the ridge, lambda.
        weight_neighbors: Weight of the neighbourhoods, alpha.

    Shapes:
        own [m, r], other [n, r], labels [m, n], laplacian [m, m] -> [m, r].
    """
    pull = weight_positive * labels - (1 + (weight_positive - 1) * labels) / (1 + np.exp(-(own @ other.T)))
    gradient: Array = pull @ other - weight_factors * own - weight_neighbors * (laplacian @ own)
    return gradient


@np.errstate(over="ignore", invalid="ignore")  # what overflows is refused in one line
def nrlmf_fit(
    labels: Array,
    mask: Array | Mask,
    drug_similarity: Array,
    target_similarity: Array,
    drug_factors: Array,
    target_factors: Array,
    *,
    weight_positive: float = 5.0,
    lambda_drug: float = 0.125,
    lambda_target: float = 0.125,
    alpha: float = 0.25,
    beta: float = 0.125,
    learning_rate: float = 0.5,
    neighbors: int = 5,
    max_iter: int = 100,
    tolerance: float = 1e-5,
) -> tuple[Array, Array]:
    """Return the factors after ascent by AdaGrad, drugs and targets in turn.

    A step is ``learning_rate * g / sqrt(sum of g^2 so far)``, entry by entry; an entry without any gradient stays.

    Args:
        labels: Zeros and ones.
        mask: 1 for observed pairs; the others count as 0, like those not known to interact.
        drug_similarity: Taken as it is.
        target_similarity: Taken as it is.
        drug_factors: Those to start from.
        target_factors: Those to start from.
        weight_positive: Weight of a known interaction.
        lambda_drug: Strength of the drugs' ridge.
        lambda_target: Strength of the targets' ridge.
        alpha: Weight of the drugs' neighbourhoods.
        beta: Weight of the targets' neighbourhoods.
        learning_rate: Length of a step.
        neighbors: How many neighbours a drug or target has.
        max_iter: Most steps of both sides.
        tolerance: Relative change of the objective from which on it is done.

    Shapes:
        labels and mask [m, n], similarities [m, m] and [n, n], factors [m, r] and [n, r] -> [m, r], [n, r].

    Raises:
        TrainingDivergedError: The objective became infinite.
    """
    seen = labels * mask
    by_drug, by_target = drug_factors, target_factors
    near_drug, near_target = (neighborhood_laplacian(s, neighbors) for s in (drug_similarity, target_similarity))
    value_of = partial(
        nrlmf_objective,
        labels=seen,
        drug_laplacian=near_drug,
        target_laplacian=near_target,
        weight_positive=weight_positive,
        lambda_drug=lambda_drug,
        lambda_target=lambda_target,
        alpha=alpha,
        beta=beta,
    )
    drug_slope = partial(
        nrlmf_gradient, weight_positive=weight_positive, weight_factors=lambda_drug, weight_neighbors=alpha
    )
    target_slope = partial(
        nrlmf_gradient, weight_positive=weight_positive, weight_factors=lambda_target, weight_neighbors=beta
    )
    drug_sum, target_sum = np.zeros_like(by_drug), np.zeros_like(by_target)
    last = value_of(by_drug, by_target)
    for _ in range(max_iter):
        gradient = drug_slope(by_drug, by_target, seen, near_drug)
        drug_sum += np.square(gradient)
        by_drug = by_drug + learning_rate * _scaled(gradient, drug_sum)
        gradient = target_slope(by_target, by_drug, seen.T, near_target)
        target_sum += np.square(gradient)
        by_target = by_target + learning_rate * _scaled(gradient, target_sum)
        value = value_of(by_drug, by_target)
        if not np.isfinite(value):
            raise TrainingDivergedError("the objective of nrlmf became infinite; look for huge similarities")
        if abs(value - last) < tolerance * abs(last):
            break
        last = value
    return by_drug, by_target


def smoothed_factors(factors: Array, known: Mask, similarity: Array, neighbors: int = 5) -> Array:
    """Return the factors with those of new drugs taken from their neighbours.

    A new drug gets the mean of the factors of its most similar known drugs, weighted by similarity. One that resembles
    none of them gets the mean of all known drugs.

    Args:
        factors: As fitted.
        known: Which rows have a known interaction.
        similarity: One row for each row of the factors.
        neighbors: How many known ones count.

    Shapes:
        factors [m, r], known [m], similarity [m, m] -> [m, r].

    Example:
        >>> factors, similarity = np.array([[1.0], [3.0], [9.0]]), np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1.0]])
        >>> smoothed_factors(factors, np.array([True, True, False]), similarity).tolist()
        [[1.0], [3.0], [2.0]]
    """
    if known.all():
        return factors
    near = similarity[np.ix_(~known, known)]
    nearest = _nearest(near, neighbors)
    weights = np.maximum(np.take_along_axis(near, nearest, axis=1), 0)
    total = weights.sum(axis=1, keepdims=True)
    trained = factors[known]
    means = (weights[:, :, None] * trained[nearest]).sum(axis=1)
    smoothed = factors.copy()
    smoothed[~known] = np.divide(means, total, out=np.tile(trained.mean(axis=0), (len(near), 1)), where=total > 0)
    return smoothed


def nrlmf_scores(
    drug_factors: Array,
    target_factors: Array,
    labels: Array,
    drug_similarity: Array,
    target_similarity: Array,
    *,
    neighbors: int = 5,
) -> Array:
    """Return the probabilities of all pairs, ``sigmoid(u v)``, with smoothed factors for new drugs and targets.

    Args:
        drug_factors: As fitted.
        target_factors: As fitted.
        labels: Those trained on, 0 where not observed: rows and columns without a 1 are new.
        drug_similarity: Taken as it is.
        target_similarity: Taken as it is.
        neighbors: How many known drugs or targets speak for a new one.

    Shapes:
        factors [m, r] and [n, r], labels [m, n], similarities [m, m] and [n, n] -> [m, n].
    """
    from scipy.special import expit  # scikit-learn brings it

    by_drug = smoothed_factors(drug_factors, labels.sum(axis=1) > 0, drug_similarity, neighbors)
    by_target = smoothed_factors(target_factors, labels.sum(axis=0) > 0, target_similarity, neighbors)
    probabilities: Array = expit(by_drug @ by_target.T)
    return probabilities


class NRLMF(ProbabilityMixin, MatrixScreener):
    """Neighbourhood regularised logistic matrix factorisation.

    The odds of a pair are the product of a drug's and a target's factors; known interactions count several times an
    unknown pair, and factors of neighbours are drawn together. A drug or target without known interactions takes the
    factors of its most similar known ones. Scores are probabilities under these weights: good to rank by, too high as
    chances.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        rank: Number of factors.
        weight_positive: How many times an unknown pair a known interaction counts.
        lambda_drug: Strength of the drugs' ridge.
        lambda_target: Strength of the targets' ridge.
        alpha: Weight of the drugs' neighbourhoods.
        beta: Weight of the targets' neighbourhoods.
        learning_rate: Length of a step.
        neighbors_fit: How many neighbours draw together.
        neighbors_predict: How many known neighbours speak for a new drug or target.
        max_iter: Most steps of both sides.
        random_state: Seed of the factors started from.

    Example:
        >>> similarity = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]])
        >>> model = NRLMF(similarity, np.eye(2), rank=2).fit_matrix([[1, 0], [0, 0], [0, 1]])  # the second drug is new
        >>> bool(model.scores_[1, 0] > model.scores_[1, 1])
        True
    """

    card = Card(
        name="nrlmf",
        summary="Logistic matrix factorisation that draws the factors of neighbours together.",
        papers=(
            Paper(
                title="Neighborhood regularized logistic matrix factorization for drug-target interaction prediction",
                authors="Y. Liu, M. Wu, C. Miao, P. Zhao, X.-L. Li",
                venue="PLoS Computational Biology 12(2)",
                year=2016,
                identifier="doi:10.1371/journal.pcbi.1004760",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="similarities are symmetric",
                code="taken as they are read (PyDTI); here the estimator makes them symmetric, the functions do not",
                default="paper",
            ),
            Quirk(
                paper="the mean over neighbours, weighted by similarity",
                code="NaN for a new drug that resembles no known one (PyDTI); here it gets the mean of all known ones",
                default="neither",
            ),
            Quirk(
                paper="log(1 + exp z), and steps of AdaGrad",
                code="overflows for large z and divides by zero where an entry never had a gradient (PyDTI)",
                default="paper",
            ),
        ),
    )
    grid: ClassVar[Grid] = {
        "lambda_drug": (0.125, 0.5),
        "lambda_target": (0.125, 0.5),
        "alpha": (0.25, 1.0),
        "beta": (0.125, 0.5),
    }

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        rank: int = 50,
        weight_positive: float = 5.0,
        lambda_drug: float = 0.125,
        lambda_target: float = 0.125,
        alpha: float = 0.25,
        beta: float = 0.125,
        learning_rate: float = 0.5,
        neighbors_fit: int = 5,
        neighbors_predict: int = 5,
        max_iter: int = 100,
        random_state: int = 0,
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.rank = rank
        self.weight_positive = weight_positive
        self.lambda_drug = lambda_drug
        self.lambda_target = lambda_target
        self.alpha = alpha
        self.beta = beta
        self.learning_rate = learning_rate
        self.neighbors_fit = neighbors_fit
        self.neighbors_predict = neighbors_predict
        self.max_iter = max_iter
        self.random_state = random_state

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        check_factor_options(self.rank, self.max_iter, self.random_state)
        in_range("weight_positive", self.weight_positive, 0, above=True)
        for name in ("lambda_drug", "lambda_target", "alpha", "beta"):
            in_range(name, getattr(self, name), 0)
        in_range("learning_rate", self.learning_rate, 0, above=True)
        in_range("neighbors_fit", self.neighbors_fit, 1, whole=True)
        in_range("neighbors_predict", self.neighbors_predict, 1, whole=True)

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        factors = nrlmf_fit(
            labels,
            observed,
            drugs,
            targets,
            *initial_factors(len(drugs), len(targets), self.rank, self.random_state),
            weight_positive=self.weight_positive,
            lambda_drug=self.lambda_drug,
            lambda_target=self.lambda_target,
            alpha=self.alpha,
            beta=self.beta,
            learning_rate=self.learning_rate,
            neighbors=self.neighbors_fit,
            max_iter=self.max_iter,
        )
        return nrlmf_scores(*factors, labels, drugs, targets, neighbors=self.neighbors_predict)


def _nearest(similarity: Array, count: int) -> NDArray[np.intp]:
    """Return the columns of the largest values of each row; among equals the last, as in the released code."""
    return np.argsort(similarity, axis=1, kind="stable")[:, ::-1][:, :count]


def _scaled(gradient: Array, squares: Array) -> Array:
    """Return ``g / sqrt(sum of g^2)``, 0 where there was no gradient yet."""
    root = np.sqrt(squares)
    return np.divide(gradient, root, out=np.zeros_like(gradient), where=root > 0)
