"""RLS-Kron: regularised least squares on all pairs at once, with the Kronecker product of two kernels.

T. van Laarhoven, S. B. Nabuurs, E. Marchiori, "Gaussian interaction profile kernels for predicting drug-target
interaction", Bioinformatics 27(21), 2011.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from stillroom.cards import Card, Quirk
from stillroom.screening._checks import Array, Mask
from stillroom.screening.estimators._rls import GIP_PAPER, check_rls_options, profile_and_similarity
from stillroom.screening.estimators._screener import Grid, MatrixScreener
from stillroom.screening.kernels.algebra import PSD, mended_eigenvalues

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
    when both their drugs and their targets are. Pairs that are not observed are regressed on as 0; where drug and
    target are both new that weighs most, and the order of their pairs can come out reversed.

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
        drug_kernel, target_kernel = (
            profile_and_similarity(rows, similarity, alpha=self.alpha, gamma=self.gamma, psd="none")
            for rows, similarity in ((labels, drugs), (labels.T, targets))
        )
        # The eigenvalues are mended on the way: repairing the kernels first would decompose them twice.
        return rls_kron(drug_kernel, target_kernel, labels, sigma=self.sigma, psd=self.psd)
