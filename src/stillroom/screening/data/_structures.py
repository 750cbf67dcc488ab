"""Which structures and sequences of a table cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from stillroom.screening.kernels.chemical import invalid_smiles
from stillroom.screening.kernels.genomic import invalid_residues

__all__ = ["unreadable_sequences", "unreadable_smiles"]


def unreadable_smiles(smiles: Iterable[str]) -> frozenset[str]:
    """Return those that are no SMILES; none without RDKit, which alone can tell."""
    if find_spec("rdkit") is None:
        return frozenset()
    return frozenset(text for _, text in invalid_smiles(list(dict.fromkeys(smiles))))


def unreadable_sequences(sequences: Iterable[str]) -> dict[str, str]:
    """Return the letters that are no residues, for each sequence that has any."""
    each = list(dict.fromkeys(sequences))
    return {each[position]: letters for position, letters in invalid_residues(each)}
