"""CMF: one set of factors explains the interactions and both similarities.

X. Zheng, H. Ding, H. Mamitsuka, S. Zhu, "Collaborative matrix factorization with multiple similarities for predicting
drug-target interactions", KDD 2013.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np

from stillroom.cards import Card, Paper, Quirk
from stillroom.errors import TrainingDivergedError
from stillroom.screening._checks import Array, Mask, in_range
from stillroom.screening.estimators._factors import check_factor_options, initial_factors
from stillroom.screening.estimators._screener import Grid, MatrixScreener

__all__ = ["CMF", "cmf_fit", "cmf_loss", "cmf_rows"]


def cmf_rows(
    own: Array,
    other: Array,
    labels: Array,
    mask: Array,
    similarity: Array,
    *,
    weight_factors: float = 0.5,
    weight_similarity: float = 0.125,
) -> Array:
    """Return one side's factors after an update of all its rows, each from the old factors of the others.

    With ``V_i`` the rows of the other side that are observed for row ``i`` (the paper's update, for one
    similarity a side)::

        u_i = (y_i V + 2 l_s s_i U) (V_i^T V_i + 2 l_s U^T U + (l_f + l_s (S_ii - ||u_i||^2)) I)^-1

    Args:
        own: Factors of the side that is updated, U.
        other: Those of the other side, V.
        labels: Zeros and ones, 0 where not observed; transposed for targets.
        mask: 1 for observed pairs, 0 for the others; transposed for targets.
        similarity: Of the updated side, S.
        weight_factors: Strength of the ridge, l_f.
        weight_similarity: Weight of the similarity, l_s.

    Shapes:
        own [m, r], other [n, r], labels [m, n], mask [m, n], similarity [m, m] -> [m, r].

    Example:
        >>> cmf_rows(np.zeros((2, 1)), np.ones((2, 1)), np.eye(2), np.ones((2, 2)), np.zeros((2, 2))).tolist()
        [[0.4], [0.4]]
    """
    rank = own.shape[1]
    ridge = weight_factors + weight_similarity * (np.diagonal(similarity) - np.square(own).sum(axis=1))
    # One product with the outer squares of V gives V_i^T V_i of all rows.
    squares = (other[:, :, None] * other[:, None, :]).reshape(len(other), rank * rank)
    normal = mask @ squares
    normal += (2 * weight_similarity * own.T @ own).ravel()
    normal[:, :: rank + 1] += ridge[:, None]
    right = labels @ other + 2 * weight_similarity * similarity @ own
    return np.asarray(np.linalg.solve(normal.reshape(-1, rank, rank), right[:, :, None])[:, :, 0], dtype=np.float64)


def cmf_loss(
    drug_factors: Array,
    target_factors: Array,
    labels: Array,
    mask: Array,
    drug_similarity: Array,
    target_similarity: Array,
    *,
    weight_factors: float = 0.5,
    weight_drug: float = 0.125,
    weight_target: float = 0.125,
) -> float:
    """Return what CMF makes small, the paper's objective for one similarity a side.

    ``||W * (Y - U V^T)||^2 + l_f (||U||^2 + ||V||^2) + l_d ||S_d - U U^T||^2 + l_t ||S_t - V V^T||^2``, halved.

    Shapes:
        drug_factors [m, r], target_factors [n, r], labels and mask [m, n], similarities [m, m] and [n, n] -> a number.
    """
    loss = np.square(labels - mask * (drug_factors @ target_factors.T)).sum()
    for factors, similarity, weight in (
        (drug_factors, drug_similarity, weight_drug),
        (target_factors, target_similarity, weight_target),
    ):
        loss += weight_factors * np.square(factors).sum()
        loss += weight * np.square(similarity - factors @ factors.T).sum()
    return float(loss) / 2


@np.errstate(over="ignore", invalid="ignore")  # what overflows is refused in one line
def cmf_fit(
    labels: Array,
    mask: Array | Mask,
    drug_similarity: Array,
    target_similarity: Array,
    drug_factors: Array,
    target_factors: Array,
    *,
    weight_factors: float = 0.5,
    weight_drug: float = 0.125,
    weight_target: float = 0.125,
    max_iter: int = 30,
    tolerance: float = 1e-6,
) -> tuple[Array, Array]:
    """Return the factors after alternating updates of drugs and targets; the scores are their product.

    Args:
        labels: Zeros and ones.
        mask: 1 for observed pairs, 0 for the others, whose labels do not count.
        drug_similarity: Taken as it is.
        target_similarity: Taken as it is.
        drug_factors: Those to start from.
        target_factors: Those to start from.
        weight_factors: Strength of the ridge.
        weight_drug: Weight of the drugs' similarity.
        weight_target: Weight of the targets' similarity.
        max_iter: Most updates of both sides.
        tolerance: Relative change of the loss from which on it is done.

    Shapes:
        labels and mask [m, n], similarities [m, m] and [n, n], factors [m, r] and [n, r] -> [m, r], [n, r].

    Raises:
        TrainingDivergedError: The loss became infinite, or a row's equations have no solution.
    """
    weights = mask.astype(np.float64)
    seen = labels * weights
    loss_of = partial(
        cmf_loss,
        labels=seen,
        mask=weights,
        drug_similarity=drug_similarity,
        target_similarity=target_similarity,
        weight_factors=weight_factors,
        weight_drug=weight_drug,
        weight_target=weight_target,
    )
    by_drug, by_target = drug_factors, target_factors
    last = loss_of(by_drug, by_target)
    drug_rows = partial(cmf_rows, weight_factors=weight_factors, weight_similarity=weight_drug)
    target_rows = partial(cmf_rows, weight_factors=weight_factors, weight_similarity=weight_target)
    for _ in range(max_iter):
        try:
            by_drug = drug_rows(by_drug, by_target, seen, weights, drug_similarity)
            by_target = target_rows(by_target, by_drug, seen.T, weights.T, target_similarity)
        except np.linalg.LinAlgError:
            raise TrainingDivergedError("the equations of a row have no solution; raise weight_factors") from None
        loss = loss_of(by_drug, by_target)
        if not np.isfinite(loss):
            raise TrainingDivergedError("the factors grew beyond all bounds; raise weight_factors")
        if abs(loss - last) < tolerance * last:
            break
        last = loss
    return by_drug, by_target


class CMF(MatrixScreener):
    """Collaborative matrix factorisation.

    The products of the factors approximate the observed labels, the drugs' similarity and the targets' similarity at
    once. Pairs that are not observed are left out, so a new drug's factors come from its similarities alone. A ridge
    that is small beside the weights of the similarities makes the rows' equations indefinite and the updates wander.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        rank: Number of factors.
        weight_factors: Strength of the ridge.
        weight_drug: Weight of the drugs' similarity.
        weight_target: Weight of the targets' similarity.
        max_iter: Most updates of both sides.
        random_state: Seed of the factors started from.

    Example:
        >>> similarity = np.array([[1.0, 0.9], [0.9, 1.0]])
        >>> model = CMF(similarity, np.eye(2), rank=2)
        >>> model = model.fit_matrix([[1, 0], [0, 0]], observed=[[1, 1], [0, 0]])  # the second drug is new
        >>> bool(model.scores_[1, 0] > model.scores_[1, 1])
        True
    """

    card = Card(
        name="cmf",
        summary="One set of factors approximates the labels and both similarities.",
        papers=(
            Paper(
                title="Collaborative matrix factorization with multiple similarities for predicting drug-target "
                "interactions",
                authors="X. Zheng, H. Ding, H. Mamitsuka, S. Zhu",
                venue="KDD",
                year=2013,
                identifier="doi:10.1145/2487575.2487670",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="several similarities a side, with weights that are learned",
                code="one similarity a side (PyDTI)",
                default="code",
            ),
            Quirk(
                paper="similarities are symmetric",
                code="taken as they are read (PyDTI); here the estimator makes them symmetric, the functions do not",
                default="paper",
            ),
        ),
    )
    grid: ClassVar[Grid] = {"weight_factors": (0.5, 1.0, 2.0), "rank": (25, 50)}

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        rank: int = 50,
        weight_factors: float = 0.5,
        weight_drug: float = 0.125,
        weight_target: float = 0.125,
        max_iter: int = 30,
        random_state: int = 0,
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.rank = rank
        self.weight_factors = weight_factors
        self.weight_drug = weight_drug
        self.weight_target = weight_target
        self.max_iter = max_iter
        self.random_state = random_state

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        check_factor_options(self.rank, self.max_iter, self.random_state)
        in_range("weight_factors", self.weight_factors, 0, above=True)
        in_range("weight_drug", self.weight_drug, 0)
        in_range("weight_target", self.weight_target, 0)

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        by_drug, by_target = cmf_fit(
            labels,
            observed,
            drugs,
            targets,
            *initial_factors(len(drugs), len(targets), self.rank, self.random_state),
            weight_factors=self.weight_factors,
            weight_drug=self.weight_drug,
            weight_target=self.weight_target,
            max_iter=self.max_iter,
        )
        scores: Array = by_drug @ by_target.T
        return scores
