"""BLM: one local model for each target over the drugs, and one for each drug over the targets.

K. Bleakley, Y. Yamanishi, "Supervised prediction of drug-target interactions using bipartite local models",
Bioinformatics 25(18), 2009.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import numpy as np

from stillroom.cards import Card, Paper, Quirk
from stillroom.errors import InputError
from stillroom.screening._checks import Array, Mask, in_range, one_of
from stillroom.screening.estimators._rls import check_rls_options, profile_and_similarity
from stillroom.screening.estimators._screener import Grid, MatrixScreener
from stillroom.screening.estimators.blm_nii import Combine, combined
from stillroom.screening.kernels.algebra import PSD

__all__ = ["BLM", "Local", "local_rls", "local_svm"]

Local = Literal["rls", "svm"]


def local_rls(labels: Array, observed: Mask, kernel: Array, *, sigma: float = 1.0) -> Array:
    """Return the scores of one kernel ridge regression a column, each on the rows observed in it.

    ``F[:, t] = K[:, o] (K[o, o] + sigma I)^-1 Y[o, t]`` with ``o`` the rows observed in column ``t``; a column without
    any 1 scores 0.

    Args:
        labels: Training labels, 0 where not observed.
        observed: Which rows each column learns from.
        kernel: Symmetric, a row for each row of the labels.
        sigma: Strength of the regularisation, above 0.

    Shapes:
        labels [m, n], observed [m, n], kernel [m, m] -> [m, n].

    Example:
        >>> local_rls(np.eye(2), np.ones((2, 2), dtype=bool), np.eye(2), sigma=1.0).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    scores = np.zeros(labels.shape)
    known = np.asarray(labels.any(axis=0))
    for rows, columns in _columns_by_rows(observed, known):
        regular = kernel[np.ix_(rows, rows)] + sigma * np.eye(len(rows))
        scores[:, columns] = kernel[:, rows] @ np.linalg.solve(regular, labels[np.ix_(rows, columns)])
    return scores


def local_svm(labels: Array, observed: Mask, kernel: Array, *, C: float = 1.0) -> Array:
    """Return the scores of one support vector machine a column, each on the rows observed in it.

    The decision ``f`` comes as ``(f + 1) / 2``, on the scale of the labels: 1 and 0 are the margins, 0.5 the border.
    A column whose observed labels are all alike has no model and scores 0.

    Args:
        labels: Training labels, 0 where not observed.
        observed: Which rows each column learns from.
        kernel: Symmetric, a row for each row of the labels.
        C: Cost of a row on the wrong side.

    Shapes:
        labels [m, n], observed [m, n], kernel [m, m] -> [m, n].

    Example:
        >>> local_svm(np.eye(2), np.ones((2, 2), dtype=bool), np.eye(2)).round(4).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    from sklearn import config_context
    from sklearn.svm import SVC

    scores = np.zeros(labels.shape)
    # Hundreds of machines are small enough for the checks of their input to be what takes long.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for rows, columns in _columns_by_rows(observed, _two_labels(labels, observed)):
            gram = kernel[np.ix_(rows, rows)]
            for column in columns:
                machine = SVC(kernel="precomputed", C=C).fit(gram, labels[rows, column])
                decision = kernel[:, rows[machine.support_]] @ machine.dual_coef_[0] + machine.intercept_[0]
                scores[:, column] = (decision + 1) / 2
    return scores


def _columns_by_rows(observed: Mask, wanted: Mask) -> list[tuple[Any, Any]]:
    """Return the columns that are wanted, together where the same rows are observed: rows, columns."""
    columns = np.flatnonzero(wanted)
    masks, group = np.unique(observed[:, columns].T, axis=0, return_inverse=True)
    return [(np.flatnonzero(mask), columns[group.ravel() == number]) for number, mask in enumerate(masks)]


def _two_labels(labels: Array, observed: Mask) -> Mask:
    """Return which columns have observed labels of both kinds."""
    both: Mask = labels.any(axis=0) & (observed & (labels == 0)).any(axis=0)
    return both


class BLM(MatrixScreener):
    """Bipartite local models.

    For each target a classifier over drugs, for each drug one over targets; the score is the larger of the two. Each
    learns from the pairs observed, so that a pair does not count as 0 in the model that scores it. A drug or target
    without known interactions has no model of its own and the other side decides; without either the score is 0. See
    ``blm_nii`` for profiles inferred in that place.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        local: The local classifier: rls, regularised least squares, or svm, a support vector machine, whose scores are
            put on the scale of the labels.
        alpha: Weight of the similarity beside the interaction profile kernel, 0..1.
        gamma: Bandwidth of the profile kernel.
        sigma: Strength of the regularisation, for rls.
        C: Cost of a training row on the wrong side, for svm.
        combine: How the two sides become one score: max or mean.
        psd: How negative eigenvalues of the kernels are mended: clip, shift, flip or none.

    Example:
        >>> similarity = np.array([[1.0, 0.2], [0.2, 1.0]])
        >>> model = BLM(similarity, np.eye(2)).fit_matrix([[1, 0], [0, 0]])
        >>> model.scores_.round(4).tolist()
        [[0.5, 0.0], [0.0505, 0.0]]
    """

    card = Card(
        name="blm",
        summary="A local model for each target over the drugs and for each drug over the targets.",
        papers=(
            Paper(
                title="Supervised prediction of drug-target interactions using bipartite local models",
                authors="K. Bleakley, Y. Yamanishi",
                venue="Bioinformatics 25(18)",
                year=2009,
                identifier="doi:10.1093/bioinformatics/btp433",
            ),
        ),
        standing="derived",
        ledger=(
            Quirk(
                paper="support vector machines",
                code="none was released; here regularised least squares unless asked",
                default="neither",
                option="local=svm",
            ),
        ),
    )
    grid: ClassVar[Grid] = {"local": ("rls", "svm"), "alpha": (0.5, 1.0), "combine": ("max", "mean")}

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        local: Local = "rls",
        alpha: float = 1.0,
        gamma: float = 1.0,
        sigma: float = 1.0,
        C: float = 1.0,
        combine: Combine = "max",
        psd: PSD = "clip",
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.local = local
        self.alpha = alpha
        self.gamma = gamma
        self.sigma = sigma
        self.C = C
        self.combine = combine
        self.psd = psd

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        one_of("local", self.local, get_args(Local))
        check_rls_options(self.alpha, self.gamma, self.sigma, self.psd)
        in_range("C", self.C, 0, above=True)
        one_of("combine", self.combine, get_args(Combine))

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        if self.local == "svm" and not (_two_labels(labels, observed).any() or _two_labels(labels.T, observed.T).any()):
            raise InputError(
                "no drug and no target has observed labels of both kinds, so there is nothing for a local svm to "
                "separate; observe more pairs, or use local=rls"
            )

        def side(profiles: Array, seen: Mask, similarity: Array) -> Array:
            kernel = profile_and_similarity(profiles, similarity, alpha=self.alpha, gamma=self.gamma, psd=self.psd)
            if self.local == "svm":
                return local_svm(profiles, seen, kernel, C=self.C)
            return local_rls(profiles, seen, kernel, sigma=self.sigma)

        def has_model(profiles: Array, seen: Mask) -> Mask:
            return _two_labels(profiles, seen) if self.local == "svm" else profiles.sum(axis=0) > 0

        by_drug, by_target = side(labels, observed, drugs), side(labels.T, observed.T, targets).T
        no_target, no_drug = ~has_model(labels, observed), ~has_model(labels.T, observed.T)
        # A side without a model has no say: its 0 would beat a negative score of the other.
        by_drug[:, no_target], by_target[no_drug] = by_target[:, no_target], by_drug[no_drug]
        return combined(by_drug, by_target, self.combine)
