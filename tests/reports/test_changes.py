"""What was lost is counted sample by sample."""

from __future__ import annotations

import numpy as np

from stillroom.reports.changes import class_changes


def test_losses_are_counted_by_true_class_and_by_answer() -> None:
    changes = class_changes(
        ["a", "b", "c", "never seen"],
        target=[0, 0, 0, 1, 1, 2],
        teacher=[0, 0, 1, 1, 0, 2],
        student=[1, 1, 0, 1, 0, 0],
    )
    np.testing.assert_array_equal(changes.samples, [3, 2, 1, 0])
    np.testing.assert_allclose(changes.teacher, [2 / 3, 1 / 2, 1, np.nan])
    np.testing.assert_allclose(changes.student, [1 / 3, 1 / 2, 0, np.nan])
    expected = np.zeros((4, 4), dtype=np.int64)
    expected[0, 1] = 2  # right by the teacher, "b" by the student
    expected[2, 0] = 1
    np.testing.assert_array_equal(changes.lost, expected)
    assert changes.won == 1
    assert changes.order == [2, 0, 1]  # c lost all, a a third, b nothing; the class without samples is left out
    assert changes.pairs(5) == [("a", "b", 2), ("c", "a", 1)]
    assert changes.pairs(1) == [("a", "b", 2)]


def test_equal_predictions_lose_nothing() -> None:
    changes = class_changes(["a", "b"], [0, 1, 1], [0, 1, 0], [0, 1, 0])
    assert not changes.lost.any()
    assert changes.won == 0
    assert changes.pairs(5) == []
