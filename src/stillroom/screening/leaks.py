"""What a split lets through: identical drugs or targets on both sides of it, whose labels need no prediction.

Data sets of drugs hold the same substance under several names (its salts, say, after the counter-ion is removed), and
proteins of the same sequence. A copy of a test drug in training gives its labels away, whatever the setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import InputError
from stillroom.screening._checks import Array
from stillroom.screening.interactions import Interactions
from stillroom.screening.protocols import Fold, Setting

__all__ = ["Twins", "identical", "leak_counts", "leak_notes"]


@dataclass(frozen=True, eq=False)
class Twins:
    """Which drugs and which targets are identical: those with the same number.

    Args:
        drug_groups: [drugs], from 0 in the order of first appearance.
        target_groups: [targets], likewise.
    """

    drug_groups: NDArray[np.intp]
    target_groups: NDArray[np.intp]


def identical(data: Interactions) -> Twins:
    """Find identical drugs and targets.

    Drugs are compared by their canonical SMILES, targets by their sequences in upper case; where these are not known,
    by their rows of the similarity, equal to within 1e-9. A similarity that does not see a difference, of
    stereoisomers say, does not tell two drugs apart. Where nothing is known, all differ.

    Args:
        data: The data set.

    Raises:
        InputError: A SMILES cannot be read.
        MissingExtraError: There are SMILES, and RDKit is not installed.

    Example:
        >>> data = Interactions(name="two", labels=np.eye(2), drugs=("a", "b"), targets=("x", "y"),
        ...                     sequences=("MKV", "mkv"))
        >>> identical(data).target_groups.tolist()
        [0, 0]
    """
    m, n = data.shape
    if data.smiles is not None:
        from stillroom.screening.kernels.chemical import canonical_smiles

        drugs = _same_text(canonical_smiles(data.smiles))
    else:
        drugs = _same_row(data.drug_similarity, m)
    if data.sequences is not None:
        targets = _same_text([sequence.strip().upper() for sequence in data.sequences])
    else:
        targets = _same_row(data.target_similarity, n)
    return Twins(drugs, targets)


def leak_counts(data: Interactions, folds: Sequence[Fold], twins: Twins) -> dict[str, int]:
    """Count over the folds what of the test is known from training.

    A drug is new in a fold when it is tested and none of its pairs is trained on: every test drug in S2 and S4, none
    in S3. Targets likewise.

    Args:
        data: The data set.
        folds: Its split.
        twins: Which of its drugs and targets are identical.

    Returns:
        ``new_drugs`` and ``new_targets``; ``new_drugs_with_twin`` and ``new_targets_with_twin``, those of them with an
        identical one among the pairs trained on; ``test_pairs``; ``pairs_with_twin``, those with a pair of an
        identical drug and an identical target in training; ``positives_with_twin``, those of them labelled 1 like such
        a pair; ``pairs_in_train``, test pairs that are trained on: not 0 where a split is broken.

    Raises:
        InputError: Folds or twins are of another data set.

    Example:
        >>> data = Interactions(name="two", labels=np.ones((2, 1)), drugs=("a", "b"), targets=("x",))
        >>> fold = Fold(train=np.array([[True], [False]]), test=np.array([[False], [True]]))
        >>> same = Twins(drug_groups=np.array([0, 0]), target_groups=np.array([0]))
        >>> counts = leak_counts(data, [fold], same)
        >>> counts["new_drugs_with_twin"], counts["positives_with_twin"]
        (1, 1)
    """
    for kind, groups, size in zip(
        ("drug", "target"), (twins.drug_groups, twins.target_groups), data.shape, strict=True
    ):
        if len(groups) != size:
            raise InputError(f"{data.name}: {len(groups)} groups of identical {kind}s for {size} {kind}s; one each")
    positives = data.labels == 1
    cells = twins.drug_groups[:, None] * (twins.target_groups.max() + 1) + twins.target_groups
    counts = dict.fromkeys(
        (
            "new_drugs",
            "new_drugs_with_twin",
            "new_targets",
            "new_targets_with_twin",
            "test_pairs",
            "pairs_with_twin",
            "positives_with_twin",
            "pairs_in_train",
        ),
        0,
    )
    for number, fold in enumerate(folds):
        if fold.test.shape != data.shape:
            raise InputError(f"fold {number} is of {list(fold.test.shape)} pairs, {data.name} of {list(data.shape)}")
        for kind, axis, groups in (("drugs", 1, twins.drug_groups), ("targets", 0, twins.target_groups)):
            trained = fold.train.any(axis=axis)
            new = fold.test.any(axis=axis) & ~trained
            counts[f"new_{kind}"] += int(new.sum())
            counts[f"new_{kind}_with_twin"] += int(np.isin(groups[new], groups[trained]).sum())
        # The pair itself is not in training, so whatever there is in its cell is another one.
        known = np.isin(cells, cells[fold.train])
        known_positive = np.isin(cells, cells[fold.train & positives])
        counts["test_pairs"] += int(fold.test.sum())
        counts["pairs_with_twin"] += int((fold.test & known).sum())
        counts["positives_with_twin"] += int((fold.test & positives & known_positive).sum())
        counts["pairs_in_train"] += int((fold.test & fold.train).sum())
    return counts


def leak_notes(counts: Mapping[str, int], setting: Setting) -> list[str]:
    """Return what leaks and how to mend it, in sentences; none where nothing does.

    Args:
        counts: Of :func:`leak_counts`.
        setting: The setting of its folds.

    Example:
        >>> counts = {"new_drugs": 54, "new_drugs_with_twin": 2, "new_targets": 0, "new_targets_with_twin": 0,
        ...           "test_pairs": 999, "pairs_with_twin": 52, "positives_with_twin": 4, "pairs_in_train": 0}
        >>> for note in leak_notes(counts, "S2"):
        ...     print(note)
        S2: 2 of 54 new drugs (all folds) have an identical drug in training; --group_twins keeps them in one fold.
        S2: 52 of 999 test pairs repeat one of training, 4 of them an interaction; --group_twins keeps them in one fold.
    """
    notes = []
    if counts["pairs_in_train"]:
        notes.append(f"{setting}: {counts['pairs_in_train']} test pairs are trained on; the split is broken.")
    mend = "--group_twins keeps them in one fold."
    for kind in ("drug", "target"):
        if counts[f"new_{kind}s_with_twin"]:
            notes.append(
                f"{setting}: {counts[f'new_{kind}s_with_twin']} of {counts[f'new_{kind}s']} new {kind}s (all folds) "
                f"have an identical {kind} in training; {mend}"
            )
    if counts["pairs_with_twin"]:
        notes.append(
            f"{setting}: {counts['pairs_with_twin']} of {counts['test_pairs']} test pairs repeat one of training, "
            f"{counts['positives_with_twin']} of them an interaction; {mend}"
        )
    return notes


def _same_text(texts: Sequence[str]) -> NDArray[np.intp]:
    numbers: dict[str | int, int] = {}
    # An empty text says nothing: its position stands for it.
    keys = [text or position for position, text in enumerate(texts)]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.intp)


def _same_row(similarity: Array | None, size: int) -> NDArray[np.intp]:
    if similarity is None:
        return np.arange(size)
    groups = np.full(size, -1, dtype=np.intp)
    for row, values in enumerate(similarity):
        if groups[row] < 0:
            # Equal rows hold equal diagonals and that value between the two. A row of zeros says nothing.
            alike = np.flatnonzero((np.abs(values - values[row]) <= 1e-9) & (groups < 0) & values.any())
            same = alike[np.abs(similarity[alike] - values).max(axis=1, initial=0.0) <= 1e-9]
            groups[[row, *same]] = groups.max() + 1
    return groups
