"""What a student lost of its teacher, class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ClassChanges", "class_changes"]


@dataclass(frozen=True, kw_only=True)
class ClassChanges:
    """Teacher and student side by side on the same test samples.

    Shapes:
        samples, teacher, student: [K] number of samples and the accuracies (0 to 1, NaN where a class has no sample).
        lost: [K, K] samples the teacher got right and the student did not, by true class and by what the student said.
        won: number of samples the student got right and the teacher did not.
    """

    classes: tuple[str, ...]
    samples: NDArray[np.int64]
    teacher: NDArray[np.float64]
    student: NDArray[np.float64]
    lost: NDArray[np.int64]
    won: int

    @property
    def order(self) -> list[int]:
        """Classes by change of accuracy, the one that lost most first; classes without samples are left out."""
        change = self.student - self.teacher
        return [int(k) for k in np.argsort(change, kind="stable") if self.samples[k]]

    def pairs(self, limit: int) -> list[tuple[str, str, int]]:
        """Return the most frequent losses as (true class, what the student said, samples)."""
        places = np.argsort(-self.lost, axis=None, kind="stable")[:limit]
        rows, columns = np.unravel_index(places, self.lost.shape)
        found = zip(rows.tolist(), columns.tolist(), strict=True)
        return [(self.classes[k], self.classes[j], int(self.lost[k, j])) for k, j in found if self.lost[k, j]]


def class_changes(classes: Sequence[str], target: ArrayLike, teacher: ArrayLike, student: ArrayLike) -> ClassChanges:
    """Compare the predictions of a teacher and a student.

    Shapes:
        target, teacher, student: [N] class indices (true, predicted, predicted), in the same order of samples.

    Example:
        >>> changes = class_changes(["cat", "dog"], target=[0, 0, 1], teacher=[0, 0, 0], student=[0, 1, 1])
        >>> changes.pairs(3), changes.won
        ([('cat', 'dog', 1)], 1)
    """
    truth, before, after = (np.asarray(values, dtype=np.int64) for values in (target, teacher, student))
    K = len(classes)
    samples = np.bincount(truth, minlength=K)
    divisor = np.where(samples > 0, samples, np.nan)
    was_right, is_right = before == truth, after == truth
    lost = np.zeros((K, K), dtype=np.int64)
    gone = was_right & ~is_right
    np.add.at(lost, (truth[gone], after[gone]), 1)
    return ClassChanges(
        classes=tuple(classes),
        samples=samples,
        teacher=np.bincount(truth[was_right], minlength=K) / divisor,
        student=np.bincount(truth[is_right], minlength=K) / divisor,
        lost=lost,
        won=int((is_right & ~was_right).sum()),
    )
