"""NetLapRLS: Laplacian regularised least squares on similarity and shared neighbours.

Z. Xia, L.-Y. Wu, X. Zhou, S. T. C. Wong, "Semi-supervised drug-protein interaction prediction from heterogeneous
biological spaces", BMC Systems Biology 4(Suppl 2), 2010.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from stillroom.cards import Card, Paper, Quirk
from stillroom.screening._checks import Array, Mask, in_range
from stillroom.screening.estimators._screener import Grid, MatrixScreener

__all__ = ["NetLapRLS", "net_lap_rls_side", "normalised_laplacian"]


def normalised_laplacian(weights: Array) -> Array:
    """Return ``I - D^-1/2 W D^-1/2`` with the row sums in ``D``; where a sum is 0, ``D^-1/2`` is 0.

    Shapes:
        weights [m, m], symmetric, not negative -> [m, m].

    Raises:
        InputError: A row sum is negative.

    Example:
        >>> normalised_laplacian(np.array([[0.0, 2.0], [2.0, 0.0]])).round(6).tolist()
        [[1.0, -1.0], [-1.0, 1.0]]
    """
    degree = weights.sum(axis=1)
    in_range("the smallest row sum of the similarities", float(degree.min()), 0)
    root: Array = np.zeros(len(degree))
    root[degree > 0] = degree[degree > 0] ** -0.5
    laplacian: Array = np.eye(len(weights)) - root[:, None] * weights * root
    return laplacian


def net_lap_rls_side(labels: Array, similarity: Array, *, gamma: float = 0.01, beta: float = 0.3) -> Array:
    """Return the scores of one side: of drugs, or of targets when called with the transposed labels.

    ``W = (S + gamma Y Y^T) / (1 + gamma)`` with zero diagonal, ``L`` its normalised Laplacian, and
    ``F = (I + beta L)^-1 Y``. The paper's ``W (W + beta L W)^-1 Y`` is the same wherever ``W`` can be inverted.

    Shapes:
        labels [m, n], similarity [m, m] -> [m, n].

    Example:
        >>> net_lap_rls_side(np.eye(2), np.eye(2), gamma=0.0, beta=1.0).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    weights: Array = (similarity + gamma * (labels @ labels.T)) / (1 + gamma)
    np.fill_diagonal(weights, 0.0)
    system = np.eye(len(weights)) + beta * normalised_laplacian(weights)
    return np.asarray(np.linalg.solve(system, labels), dtype=np.float64)


class NetLapRLS(MatrixScreener):
    """Network-based Laplacian regularised least squares: ``(F_d + F_t^T) / 2``.

    Scores vary little between drugs that are alike or share targets, and between such targets.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        gamma_drug: Weight of shared targets beside the drugs' similarity.
        gamma_target: Weight of shared drugs beside the targets' similarity.
        beta_drug: Strength of the regularisation over drugs.
        beta_target: Strength of the regularisation over targets.

    Example:
        >>> model = NetLapRLS(np.eye(2), np.eye(2), gamma_drug=0, gamma_target=0).fit_matrix(np.eye(2))
        >>> model.scores_.round(4).tolist()
        [[0.7692, 0.0], [0.0, 0.7692]]
    """

    card = Card(
        name="net_lap_rls",
        summary="Least squares kept smooth over a network of similarity and shared partners, on both sides.",
        papers=(
            Paper(
                title="Semi-supervised drug-protein interaction prediction from heterogeneous biological spaces",
                authors="Z. Xia, L.-Y. Wu, X. Zhou, S. T. C. Wong",
                venue="BMC Systems Biology 4(Suppl 2)",
                year=2010,
                identifier="doi:10.1186/1752-0509-4-S2-S6",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="gamma 0.01, beta 0.3",
                code="gamma 10, beta 1e-5 in the driver of PyDTI, which also hands beta of the targets to the drugs",
                default="paper",
                option="gamma_drug=10 gamma_target=10 beta_drug=1e-5 beta_target=1e-5",
            ),
            Quirk(
                paper="W (W + beta L W)^-1",
                code="the same, by an explicit inverse that fails where W is singular",
                default="neither",
            ),
        ),
    )
    grid: ClassVar[Grid] = {
        "gamma_drug": (0.01, 1.0, 10.0),
        "gamma_target": (0.01, 1.0, 10.0),
        "beta_drug": (1e-5, 0.3),
        "beta_target": (1e-5, 0.3),
    }

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        gamma_drug: float = 0.01,
        gamma_target: float = 0.01,
        beta_drug: float = 0.3,
        beta_target: float = 0.3,
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.gamma_drug = gamma_drug
        self.gamma_target = gamma_target
        self.beta_drug = beta_drug
        self.beta_target = beta_target

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        for name in ("gamma_drug", "gamma_target", "beta_drug", "beta_target"):
            in_range(name, getattr(self, name), 0)

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        by_drug = net_lap_rls_side(labels, drugs, gamma=self.gamma_drug, beta=self.beta_drug)
        by_target = net_lap_rls_side(labels.T, targets, gamma=self.gamma_target, beta=self.beta_target)
        scores: Array = (by_drug + by_target.T) / 2
        return scores
