"""RLS-Kron: regularised least squares on all pairs at once, with the Kronecker product of two kernels.

T. van Laarhoven, S. B. Nabuurs, E. Marchiori, "Gaussian interaction profile kernels for predicting drug-target
interaction", Bioinformatics 27(21), 2011.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from stillroom.cards import Card, Quirk
from stillroom.screening._checks import Array, Mask
from stillroom.screening.estimators._rls import (
    GIP_PAPER,
    check_rls_options,
    profile_and_similarity,
    seen_and_cross_kernel,
)
from stillroom.screening.estimators._screener import Grid, MatrixScreener
from stillroom.screening.kernels.algebra import PSD, kron_apply, mended_eigenvalues

__all__ = ["RLSKron", "rls_kron"]


def rls_kron(
    drug_kernel: Array, target_kernel: Array, labels: Array, *, sigma: float = 1.0, psd: PSD = "none"
) -> Array:
    """Return ``vec F = K (K + sigma I)^-1 vec Y`` for ``K`` the Kronecker product of two kernels, without forming it.

    With ``K_d = V_d diag(l_d) V_d^T``, ``K_t`` likewise and ``E[i, j] = l_d[i] l_t[j]``::

        F = V_d (E / (E + sigma) * (V_d^T Y V_t)) V_t^T

    It costs two symmetric eigendecompositions, O(m^3 + n^3), and memory for matrices [m, m], [n, n] and [m, n].

    Args:
        drug_kernel: Symmetric. Without repair it has to be positive semi-definite: eigenvalues whose product comes near
            ``-sigma`` blow up.
        target_kernel: As for drugs.
        labels: Training labels.
        sigma: Strength of the regularisation, above 0.
        psd: How negative eigenvalues of both kernels are mended: clip, shift, flip or none.

    Shapes:
        drug_kernel [m, m], target_kernel [n, n], labels [m, n] -> [m, n].

    Example:
        >>> rls_kron(np.eye(2), np.eye(2), np.eye(2), sigma=1.0).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    drug_values, drug_vectors = np.linalg.eigh(drug_kernel)
    target_values, target_vectors = np.linalg.eigh(target_kernel)
    shrink = np.outer(mended_eigenvalues(drug_values, psd), mended_eigenvalues(target_values, psd))
    shrink /= shrink + sigma
    shrink *= drug_vectors.T @ labels @ target_vectors
    fitted: Array = drug_vectors @ shrink @ target_vectors.T
    return fitted


class RLSKron(MatrixScreener):
    """Regularised least squares with the Kronecker product of drug and target kernel.

    ``vec F = K (K + sigma I)^-1 vec Y`` with ``K = K_d (x) K_t``, each ``alpha S + (1 - alpha) GIP``. Pairs are similar
    when both their drugs and their targets are. A drug or target of which no pair is observed takes no part in the
    regression and is scored through its similarity alone; other pairs that are not observed are regressed on as 0.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        alpha: Weight of the similarity beside the interaction profile kernel, 0..1.
        gamma: Bandwidth of the profile kernel.
        sigma: Strength of the regularisation.
        psd: How negative eigenvalues of the kernels are mended: clip, shift, flip or none.

    Example:
        >>> model = RLSKron(np.eye(2), np.eye(2), alpha=1.0, sigma=0.5).fit_matrix(np.eye(2))
        >>> model.scores_.round(4).tolist()
        [[0.6667, 0.0], [0.0, 0.6667]]
    """

    card = Card(
        name="rls_kron",
        summary="Kernel ridge regression on all pairs at once, with the product of drug and target kernels.",
        papers=(GIP_PAPER,),
        standing="verified",
        ledger=(
            Quirk(
                paper="symmetric eigendecompositions; the grid of eigenvalues follows the labels' axes",
                code="a general eigensolver, and eigenvalues laid out drug by drug against labels laid out target by "
                "target (PyDTI's WNN-GIP): wrong wherever the two spectra differ",
                default="paper",
            ),
            Quirk(
                paper="all pairs that are not known to interact are regressed on as 0",
                code="the same, also those of a drug or target that is held out, which reverses the order of pairs "
                "that are new on both sides; here one without any observed pair is left out of the regression",
                default="neither",
            ),
        ),
    )
    grid: ClassVar[Grid] = {"alpha": (0.25, 0.5, 0.75), "sigma": (0.25, 1.0)}

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        alpha: float = 0.5,
        gamma: float = 1.0,
        sigma: float = 1.0,
        psd: PSD = "clip",
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.alpha = alpha
        self.gamma = gamma
        self.sigma = sigma
        self.psd = psd

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        check_rls_options(self.alpha, self.gamma, self.sigma, self.psd)

    def _scores(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> Array:
        options: dict[str, Any] = {"alpha": self.alpha, "gamma": self.gamma}
        seen_drugs: Mask = observed.sum(axis=1) > 0
        seen_targets: Mask = observed.sum(axis=0) > 0
        if seen_drugs.all() and seen_targets.all():
            drug_kernel = profile_and_similarity(labels, drugs, psd="none", **options)
            target_kernel = profile_and_similarity(labels.T, targets, psd="none", **options)
            # The eigenvalues are mended on the way: repairing the kernels first would decompose them twice.
            return rls_kron(drug_kernel, target_kernel, labels, sigma=self.sigma, psd=self.psd)
        drug_kernel, drug_cross = seen_and_cross_kernel(labels, seen_drugs, drugs, psd=self.psd, **options)
        target_kernel, target_cross = seen_and_cross_kernel(labels.T, seen_targets, targets, psd=self.psd, **options)
        seen = labels[np.ix_(seen_drugs, seen_targets)]
        # (K + sigma I) a = y, so that a = (y - K a) / sigma.
        dual = (seen - rls_kron(drug_kernel, target_kernel, seen, sigma=self.sigma)) / self.sigma
        return kron_apply(drug_cross, target_cross, dual)
