"""The value every part of screening passes on: drugs, targets, which pairs interact, how alike they are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import InputError
from stillroom.screening._checks import Array, Mask, checked_labels, checked_mask, checked_similarity

__all__ = ["Interactions"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """Known interactions of m drugs and n targets.

    A label 0 means *not known to interact* unless the pair is in ``measured``. Drugs and targets without any
    interaction are allowed: they are the new ones a screening is for.

    Args:
        name: What reports call the data set.
        labels: [m, n], 1 for pairs known to interact.
        drugs: Names, each once.
        targets: Names, each once.
        measured: [m, n], the pairs whose label comes from a measurement, 1 as well as 0; without it only the
            interactions are known.
        smiles: The drugs' structures, where known.
        sequences: The targets' amino acids, where known.
        drug_similarity: [m, m], where known; made symmetric.
        target_similarity: [n, n], where known; made symmetric.
        notes: Sentences about what was done in reading, for reports.

    Raises:
        InputError: Sizes disagree, a name stands twice, a label is not 0 or 1, a similarity is not finite, or nothing
            interacts.

    Example:
        >>> data = Interactions(name="two", labels=np.eye(2), drugs=("a", "b"), targets=("x", "y"))
        >>> data.shape, data.new_drugs.tolist()
        ((2, 2), [])
    """

    name: str
    labels: Array
    drugs: Sequence[str]
    targets: Sequence[str]
    measured: Mask | None = None
    smiles: Sequence[str] | None = None
    sequences: Sequence[str] | None = None
    drug_similarity: Array | None = None
    target_similarity: Array | None = None
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check sizes and values once, for everything that follows."""
        labels = checked_labels(self.labels)
        m, n = labels.shape
        sides = (("drug", m, self.drugs, self.smiles), ("target", n, self.targets, self.sequences))
        for kind, size, names, texts in sides:
            if len(names) != size:
                raise InputError(f"{self.name}: {len(names)} names of {kind}s for labels of {size}")
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise InputError(
                    f"{self.name}: the {kind} {twice[0]!r} stands {Counter(names)[twice[0]]} times; once each"
                )
            if texts is not None and len(texts) != size:
                raise InputError(f"{self.name}: {len(texts)} structures or sequences for {size} {kind}s; one each")
        values: dict[str, Any] = {"labels": labels}
        if self.measured is not None:
            values["measured"] = checked_mask(self.measured, labels.shape, "measured")
            if (labels.astype(bool) & ~values["measured"]).any():
                raise InputError(f"{self.name}: a pair is labelled 1 and not among the measured ones")
        for name, size in (("drug_similarity", m), ("target_similarity", n)):
            if getattr(self, name) is not None:
                values[name] = checked_similarity(getattr(self, name), size, name)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for name in ("drugs", "targets", "smiles", "sequences", "notes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of drugs and of targets."""
        return self.labels.shape[0], self.labels.shape[1]

    @property
    def new_drugs(self) -> NDArray[np.intp]:
        """Positions of drugs without any known interaction."""
        return np.flatnonzero(~self.labels.any(axis=1))

    @property
    def new_targets(self) -> NDArray[np.intp]:
        """Positions of targets without any known interaction."""
        return np.flatnonzero(~self.labels.any(axis=0))

    def replace(self, **values: Any) -> Interactions:
        """Return the same data with some fields changed, checked again."""
        return replace(self, **values)

    def digest(self) -> str:
        """Return the SHA-256 of what methods see: labels, what was measured, similarities."""
        digest = hashlib.sha256()
        for name in ("labels", "measured", "drug_similarity", "target_similarity"):
            values = getattr(self, name)
            digest.update(f"{name} {None if values is None else values.shape}".encode())
            digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the counts as plain data."""
        m, n = self.shape
        positives = int(self.labels.sum())
        return {
            "name": self.name,
            "drugs": m,
            "targets": n,
            "interactions": positives,
            "density": positives / (m * n),
            "measured": None if self.measured is None else int(self.measured.sum()),
            "new_drugs": len(self.new_drugs),
            "new_targets": len(self.new_targets),
            "notes": list(self.notes),
        }
