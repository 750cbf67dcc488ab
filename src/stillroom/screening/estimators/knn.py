"""Nearest neighbours among pairs, in the feature space of the product kernel.

J.-P. Mei, C.-K. Kwoh, P. Yang, X.-L. Li, "Classification and its applications for drug-target interaction
identification", arXiv 1502.04469, 2015.
"""

from __future__ import annotations

from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.cards import Card, Paper
from stillroom.errors import InputError
from stillroom.screening._checks import Array, Mask, in_range, one_of
from stillroom.screening.estimators._sampling import check_sampling, sampled_pairs
from stillroom.screening.estimators._screener import Grid, Screener
from stillroom.screening.kernels.algebra import PSD, pairwise_kernel, psd_repaired

__all__ = ["KernelKNN", "kernel_knn"]

_BLOCK = 2**21  # kernel values held at once


def kernel_knn(
    drug_kernel: Array,
    target_kernel: Array,
    references: NDArray[np.intp],
    labels: NDArray[np.int64],
    pairs: NDArray[np.intp],
    *,
    neighbors: int = 5,
) -> Array:
    """Return the vote of the nearest reference pairs, -1..1 for similarities in 0..1.

    ``K(p, q) = K_d[d, d'] K_t[t, t']`` for ``p = (d, t)``, ``q = (d', t')``; near is what has a small
    ``||phi(p) - phi(q)||^2 = K(p, p) + K(q, q) - 2 K(p, q)``, and the vote of the k nearest is::

        1/k sum over q of max(K(p, q), 0) (2 y(q) - 1)

    It is not divided by the sum of the weights: interactions far away say less than near ones. Memory stays at some
    millions of numbers, however many pairs are asked for.

    Args:
        drug_kernel: Symmetric, positive semi-definite.
        target_kernel: As for drugs.
        references: The pairs that may be neighbours.
        labels: Theirs, 0 or 1.
        pairs: What is asked for.
        neighbors: How many vote, at most as many as there are references.

    Shapes:
        drug_kernel [m, m], target_kernel [n, n], references [R, 2], labels [R], pairs [P, 2] -> [P].

    Example:
        >>> near, far = np.array([[0, 0]]), np.array([[1, 1]])
        >>> both = np.concatenate([near, far])
        >>> kernel_knn(np.eye(2), np.eye(2), both, np.array([1, 0]), both, neighbors=1).tolist()
        [1.0, -1.0]
    """
    votes = 2.0 * labels - 1.0
    lengths = np.diagonal(drug_kernel)[references[:, 0]] * np.diagonal(target_kernel)[references[:, 1]]
    scores = np.empty(len(pairs))
    size = max(1, _BLOCK // len(references))
    for start in range(0, len(pairs), size):
        block = slice(start, start + size)
        kernel = pairwise_kernel(drug_kernel, target_kernel, pairs[block], references)
        # K(p, p) is the same for all references, so the order does without it.
        nearest = np.argpartition(lengths - 2 * kernel, neighbors - 1, axis=1)[:, :neighbors]
        weights = np.maximum(np.take_along_axis(kernel, nearest, axis=1), 0.0)
        scores[block] = (weights * votes[nearest]).mean(axis=1)
    return scores


class KernelKNN(Screener):
    """The vote of the most similar pairs, known interactions against sampled unknown pairs.

    A pair is near another when both their drugs and their targets are similar. The unknown pairs are sampled several
    times and the votes averaged. Every pair that is scored is compared with all of them: hours for a screen of
    millions of pairs.

    Args:
        drug_similarity: [m, m], made symmetric.
        target_similarity: [n, n], made symmetric.
        neighbors: How many pairs vote.
        negatives: Observed pairs labelled 0 that are drawn for each interaction.
        repeats: How often they are drawn; the scores are averaged.
        psd: How negative eigenvalues of the similarities are mended: clip, shift, flip or none.
        random_state: Seed of the draws.

    Example:
        >>> model = KernelKNN(np.eye(2), np.eye(2), neighbors=1).fit_matrix(np.eye(2))
        >>> model.predict([[0, 0], [0, 1]]).tolist()
        [1, 0]
    """

    card = Card(
        name="knn",
        summary="The vote of the nearest pairs in the feature space of the product kernel.",
        papers=(
            Paper(
                title="Classification and its applications for drug-target interaction identification",
                authors="J.-P. Mei, C.-K. Kwoh, P. Yang, X.-L. Li",
                venue="arXiv",
                year=2015,
                identifier="arXiv:1502.04469",
            ),
        ),
        standing="reconstructed",
    )
    grid: ClassVar[Grid] = {"neighbors": (3, 5, 10), "negatives": (1.0, 5.0)}
    threshold: ClassVar[float] = 0.0

    def __init__(
        self,
        drug_similarity: Any = None,
        target_similarity: Any = None,
        *,
        neighbors: int = 5,
        negatives: float = 1.0,
        repeats: int = 5,
        psd: PSD = "clip",
        random_state: int = 0,
    ) -> None:
        self.drug_similarity = drug_similarity
        self.target_similarity = target_similarity
        self.neighbors = neighbors
        self.negatives = negatives
        self.repeats = repeats
        self.psd = psd
        self.random_state = random_state

    def check_options(self) -> None:
        """Refuse values outside their ranges."""
        in_range("neighbors", self.neighbors, 1, whole=True)
        check_sampling(self.negatives, self.random_state, self.repeats)
        one_of("psd", self.psd, get_args(PSD))

    def _fit(self, labels: Array, observed: Mask, drugs: Array, targets: Array) -> None:
        generator = np.random.default_rng(self.random_state)
        references = [sampled_pairs(labels, observed, generator, negatives=self.negatives) for _ in range(self.repeats)]
        count = len(references[0][0])
        if count < self.neighbors:
            raise InputError(f"neighbors is {self.neighbors}, but there are {count} pairs to choose from; lower it")
        self.references_ = references
        self.drug_kernel_ = psd_repaired(drugs, self.psd)
        self.target_kernel_ = psd_repaired(targets, self.psd)

    def _score(self, pairs: NDArray[np.intp]) -> Array:
        votes = [
            kernel_knn(self.drug_kernel_, self.target_kernel_, *references, pairs, neighbors=self.neighbors)
            for references in self.references_
        ]
        mean: Array = np.mean(votes, axis=0)
        return mean
