"""KBMF2K: drugs and targets are projected from their kernels into one space, where near ones interact.

M. Gönen, "Predicting drug-target interactions from chemical and genomic kernels using Bayesian matrix factorization",
Bioinformatics 28(18), 2012.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from stillroom.cards import Card, Paper, Quirk
from stillroom.errors import InputError
from stillroom.screening._checks import Array, Mask, in_range
from stillroom.screening.estimators._factors import check_factor_options, initial_factors
from stillroom.screening.estimators._screener import Grid, MatrixScreener, ProbabilityMixin

__all__ = ["KBMF", "Side", "kbmf_fit", "kbmf_probability", "kbmf_side", "truncated_means"]


@dataclass(frozen=True)
class Side:
    """The posterior of one side, drugs or targets, N of them in R components.

    Args:
        precision: Means of the precisions of the projections, [N, R].
        weights: Means of the projections, in the basis of the kernel's eigenvectors, [N, R].
        variances: Their variances, [N, R]; in this basis they are independent.
        factors: Means of the factors, [N, R].
        covariance: The factors' covariance, the same for all rows, [R, R].
    """

    precision: Array
    weights: Array
    variances: Array
    factors: Array
    covariance: Array


def truncated_means(mean: Array, sign: Array, margin: float = 1.0) -> Array:
    """Return the means of normal variables of variance 1 that are known to lie beyond the margin on their side.

    ``E[f | sign f > margin] = mean + sign phi(x) / Phi(-x)`` with ``x = margin - sign mean``.

    Args:
        mean: Of the normal variables.
        sign: 1 or -1.
        margin: At least 0.

    Shapes:
        mean [m, n], sign [m, n] -> [m, n].

    Example:
        >>> truncated_means(np.zeros((1, 2)), np.array([[1.0, -1.0]]), margin=0.0).round(4).tolist()
        [[0.7979, -0.7979]]
    """
    from scipy.special import erfcx  # scikit-learn brings it

    # erfcx is exp(x^2) erfc(x): the quotient needs no exponential that could vanish.
    with np.errstate(over="ignore"):  # infinite far inside the region, where nothing is cut off
        hazard = np.sqrt(2 / np.pi) / erfcx((margin - sign * mean) / np.sqrt(2))
    moved: Array = mean + sign * hazard
    return moved


def kbmf_side(
    side: Side,
    other: Side,
    outputs: Array,
    values: Array,
    vectors: Array,
    *,
    noise: float = 0.1,
    prior_shape: float = 1.0,
    prior_rate: float = 1.0,
) -> Side:
    """Return one side's posterior after an update of its precisions, projections and factors, in this order.

    With the kernel ``K = Q diag(d) Q^T``, M the means of the factors and s the noise::

        lambda:     (a + 1 / 2) / (b + E[w^2] / 2)
        W = Q^T A:  variance v = 1 / (lambda + d^2 / s^2),  mean v * d / s^2 * Q^T M
        G:          covariance C = (I / s^2 + sum over j of E[h_j h_j^T])^-1,  means (K A / s^2 + E[F] H) C

    Args:
        side: What is updated.
        other: The other side, h_j its factors.
        outputs: Means of the latent scores E[F], a row for each row of the side.
        values: Eigenvalues of the side's kernel, d.
        vectors: Its eigenvectors, Q.
        noise: Standard deviation of the factors about their projections, s.
        prior_shape: Shape of the gamma prior of a precision, a.
        prior_rate: Its rate, b.

    Shapes:
        outputs [N, M], values [N], vectors [N, N].
    """
    # Deviation: the precisions belong to the entries of Q^T A, not to those of A. The covariance of a component is
    # diagonal in this basis, whatever the precisions, and no matrix of the kernel's size has to be inverted.
    precision = (prior_shape + 0.5) / (prior_rate + (np.square(side.weights) + side.variances) / 2)
    scale = noise**-2
    variances = 1 / (precision + scale * np.square(values)[:, None])
    weights = variances * (scale * values)[:, None] * (vectors.T @ side.factors)
    moments = other.factors.T @ other.factors + len(other.factors) * other.covariance
    covariance = np.asarray(np.linalg.inv(scale * np.eye(len(moments)) + moments), dtype=np.float64)
    projected = (vectors * values) @ weights
    factors = (scale * projected + outputs @ other.factors) @ covariance
    return Side(precision, weights, variances, factors, covariance)


def kbmf_fit(
    labels: Array,
    drug_kernel: Array,
    target_kernel: Array,
    drug_factors: Array,
    target_factors: Array,
    *,
    margin: float = 1.0,
    noise: float = 0.1,
    prior_shape: float = 1.0,
    prior_rate: float = 1.0,
    max_iter: int = 200,
) -> tuple[Array, Array]:
    """Return the projections of drugs and targets, ``K A``; their product is the mean of the latent score.

    The model, with ``K = Q diag(d) Q^T``, the projections A, the factors G of drugs, H of targets alike, and the latent
    scores F::

        (Q^T A)[i, r] ~ N(0, 1 / lambda[i, r]),  lambda[i, r] ~ Gamma(a, b),  G = K A + N(0, s^2),  F = G H^T + N(0, 1)
        label 1: F > margin,  label 0: F < -margin

    It is fitted by variational Bayes: drugs, targets and latent scores are updated in turn, from the given factors and
    from latent scores of which nothing but the sign is known. The kernels need not be positive semi-definite. Each is
    decomposed once; an iteration costs O((m^2 + n^2 + m n) r).

    Args:
        labels: Zeros and ones.
        drug_kernel: Symmetric.
        target_kernel: Symmetric.
        drug_factors: Means to start from.
        target_factors: Means to start from.
        margin: Width of the band around 0 that no latent score falls in, halved.
        noise: Standard deviation of the factors about their projections, s.
        prior_shape: Shape of the gamma prior of a precision, a.
        prior_rate: Its rate, b.
        max_iter: Number of updates.

    Shapes:
        labels [m, n], kernels [m, m] and [n, n], factors [m, r] and [n, r] -> [m, r], [n, r].

    Raises:
        InputError: A similarity is too large to be squared.
    """
    updated = partial(kbmf_side, noise=noise, prior_shape=prior_shape, prior_rate=prior_rate)
    drug_basis, target_basis = np.linalg.eigh(drug_kernel), np.linalg.eigh(target_kernel)
    largest = max(float(np.abs(values).max()) for values, _ in (drug_basis, target_basis))
    if largest / noise > 1e150:
        raise InputError(
            f"a kernel has the eigenvalue {largest:.3g}, too large to be squared; bring similarities to 0..1"
        )
    drugs, targets = (
        Side(
            precision=np.ones_like(factors),
            weights=np.zeros_like(factors),
            variances=np.ones_like(factors),
            factors=factors,
            covariance=np.eye(factors.shape[1]),
        )
        for factors in (drug_factors, target_factors)
    )
    sign = 2 * labels - 1
    outputs = truncated_means(np.zeros_like(sign), sign, margin)
    for _ in range(max_iter):
        drugs = updated(drugs, targets, outputs, *drug_basis)
        targets = updated(targets, drugs, outputs.T, *target_basis)
        outputs = truncated_means(drugs.factors @ targets.factors.T, sign, margin)
    by_drug, by_target = (
        (vectors * values) @ side.weights for (values, vectors), side in ((drug_basis, drugs), (target_basis, targets))
    )
    return by_drug, by_target


def kbmf_probability(mean: Array, margin: float = 1.0) -> Array:
    """Return the probability of label 1 for a latent score of this mean and variance 1 that lies outside the margin.

    ``Phi(f - margin) / (Phi(f - margin) + Phi(-f - margin))``.

    Shapes:
        mean [m, n] -> [m, n].

    Example:
        >>> kbmf_probability(np.array([-40.0, 0.0, 1.0, 40.0])).round(4).tolist()
        [0.0, 0.5, 0.9565, 1.0]
    """
    from scipy.special import expit, log_ndtr  # scikit-learn brings it

    probability: Array = expit(log_ndtr(mean - margin) - log_ndtr(-mean - margin))
    return probability


class KBMF(ProbabilityMixin, MatrixScreener):
    """Kernelised Bayesian matrix factorisation with twin kernels.

    Drugs and targets are projected from their similarities into one space of few components, where the product of a
    drug and a target says whether they interact. A new drug is scored by its row of the similarity. Pairs not known to
    interact count as negative, also those not observed.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        rank: Number of components.
        margin: Half the width of the band around 0 that no latent score falls in.
        noise: Standard deviation of the factors about their projections.
        prior_shape: Shape of the gamma prior of the precisions.
        prior_rate: Rate of that prior.
        max_iter: Number of updates.
        random_state: Seed of the factors started from.

    Example:
        >>> similarity = np.array([[1.0, 0.9, 0.1], [0.9, 1.0, 0.1], [0.1, 0.1, 1.0]])
        >>> model = KBMF(similarity, np.eye(2), rank=2).fit_matrix([[1, 0], [0, 0], [0, 1]])  # the second drug is new
        >>> bool(model.scores_[1, 0] > model.scores_[1, 1])
        True
    """

    card = Card(
        name="kbmf",
        summary="Bayesian factorisation: drugs and targets are projected from their kernels into one space.",
        papers=(
            Paper(
                title="Predicting drug-target interactions from chemical and genomic kernels using Bayesian matrix "
                "factorization",
                authors="M. Gönen",
                venue="Bioinformatics 28(18)",
                year=2012,
                identifier="doi:10.1093/bioinformatics/bts360",
            ),
        ),
        standing="derived",
        ledger=(
            Quirk(
                paper="a precision for every entry of the projections",
                code="likewise, with an inverse [m, m] for every component and update (the author's kbmf); here for "
                "every entry in the basis of the kernel's eigenvectors, so that each kernel is decomposed once",
                default="neither",
            ),
            Quirk(
                paper="pairs not known to interact are -1",
                code="a label 0 leaves the latent score free (the author's kbmf)",
                default="paper",
            ),
        ),
    )
    grid: ClassVar[Grid] = {"rank": (10, 20, 50), "noise": (0.03, 0.1, 0.3)}

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        rank: int = 20,
        margin: float = 1.0,
        noise: float = 0.1,
        prior_shape: float = 1.0,
        prior_rate: float = 1.0,
        max_iter: int = 200,
        random_state: int = 0,
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.rank = rank
        self.margin = margin
        self.noise = noise
        self.prior_shape = prior_shape
        self.prior_rate = prior_rate
        self.max_iter = max_iter
        self.random_state = random_state

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        check_factor_options(self.rank, self.max_iter, self.random_state)
        in_range("margin", self.margin, 0)
        in_range("noise", self.noise, 1e-6)
        in_range("prior_shape", self.prior_shape, 0, above=True)
        in_range("prior_rate", self.prior_rate, 0, above=True)

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        by_drug, by_target = kbmf_fit(
            labels,
            drugs,
            targets,
            *initial_factors(len(drugs), len(targets), self.rank, self.random_state),
            margin=self.margin,
            noise=self.noise,
            prior_shape=self.prior_shape,
            prior_rate=self.prior_rate,
            max_iter=self.max_iter,
        )
        return kbmf_probability(by_drug @ by_target.T, self.margin)
