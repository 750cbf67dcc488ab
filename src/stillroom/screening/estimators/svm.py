"""The support vector machine on pairs with the product of drug and target kernels.

L. Jacob, J.-P. Vert, "Protein-ligand interaction prediction: an improved chemogenomics approach",
Bioinformatics 24(19), 2008.
"""

from __future__ import annotations

from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.cards import Card, Paper
from stillroom.screening._checks import Array, Mask, in_range, one_of
from stillroom.screening.estimators._sampling import check_sampling, sampled_pairs
from stillroom.screening.estimators._screener import Grid, MatrixScreener
from stillroom.screening.kernels.algebra import PSD, kron_apply, pairwise_kernel, psd_repaired

__all__ = ["PairwiseSVM", "pairwise_svm"]


def pairwise_svm(
    drug_kernel: Array, target_kernel: Array, pairs: NDArray[np.intp], labels: NDArray[np.int64], *, C: float = 1.0
) -> tuple[Array, float]:
    """Return the dual coefficients, each at the place of its pair, and the intercept.

    The kernel is ``K((d, t), (d', t')) = K_d[d, d'] K_t[t, t']``, and so the decision of all pairs at once is
    ``K_d A K_t^T + b``. Training holds the kernel between the training pairs, P^2 numbers.

    Args:
        drug_kernel: Symmetric, positive semi-definite.
        target_kernel: As for drugs.
        pairs: Training pairs.
        labels: Theirs, 0 and 1.
        C: Cost of a pair on the wrong side.

    Shapes:
        drug_kernel [m, m], target_kernel [n, n], pairs [P, 2], labels [P] -> A [m, n], b.

    Example:
        >>> coefficients, _ = pairwise_svm(np.eye(1), np.eye(2), np.array([[0, 0], [0, 1]]), np.array([1, 0]))
        >>> coefficients.round(4).tolist()
        [[1.0, -1.0]]
    """
    from sklearn.svm import SVC

    machine = SVC(kernel="precomputed", C=C).fit(pairwise_kernel(drug_kernel, target_kernel, pairs, pairs), labels)
    coefficients = np.zeros((len(drug_kernel), len(target_kernel)))
    drugs, targets = pairs[machine.support_].T
    coefficients[drugs, targets] = machine.dual_coef_[0]
    return coefficients, float(machine.intercept_[0])


class PairwiseSVM(MatrixScreener):
    """A support vector machine with the pairwise product kernel, known interactions against sampled unknown pairs.

    The unknown pairs are sampled several times and the decisions averaged. See ``blm`` for local machines, one a drug
    or target.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        C: Cost of a training pair on the wrong side.
        negatives: Observed pairs labelled 0 that are drawn for each interaction.
        repeats: How often they are drawn; the scores are averaged.
        psd: How negative eigenvalues of the similarities are mended: clip, shift, flip or none.
        random_state: Seed of the draws.

    Example:
        >>> model = PairwiseSVM(np.eye(2), np.eye(2)).fit_matrix(np.eye(2))
        >>> model.predict([[0, 0], [0, 1]]).tolist()
        [1, 0]
    """

    card = Card(
        name="svm",
        summary="A support vector machine on pairs, with the product of drug and target kernels.",
        papers=(
            Paper(
                title="Protein-ligand interaction prediction: an improved chemogenomics approach",
                authors="L. Jacob, J.-P. Vert",
                venue="Bioinformatics 24(19)",
                year=2008,
                identifier="doi:10.1093/bioinformatics/btn409",
            ),
        ),
        standing="derived",
    )
    grid: ClassVar[Grid] = {"C": (0.1, 1.0, 10.0), "negatives": (1.0, 3.0)}
    threshold: ClassVar[float] = 0.0

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        C: float = 1.0,
        negatives: float = 1.0,
        repeats: int = 5,
        psd: PSD = "clip",
        random_state: int = 0,
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.C = C
        self.negatives = negatives
        self.repeats = repeats
        self.psd = psd
        self.random_state = random_state

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        in_range("C", self.C, 0, above=True)
        check_sampling(self.negatives, self.random_state, self.repeats)
        one_of("psd", self.psd, get_args(PSD))

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        drug_kernel, target_kernel = psd_repaired(drugs, self.psd), psd_repaired(targets, self.psd)
        generator = np.random.default_rng(self.random_state)
        coefficients, intercept = np.zeros(labels.shape), 0.0
        for _ in range(self.repeats):
            pairs, known = sampled_pairs(labels, observed, generator, negatives=self.negatives)
            dual, shift = pairwise_svm(drug_kernel, target_kernel, pairs, known, C=self.C)
            coefficients += dual / self.repeats
            intercept += shift / self.repeats
        # The decision is linear in the coefficients: their mean gives the mean of the decisions.
        return kron_apply(drug_kernel, target_kernel, coefficients) + intercept
