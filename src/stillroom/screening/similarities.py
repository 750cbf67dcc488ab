"""Similarities a data set lacks, computed from structures and sequences; and what is odd about those it brings."""

from __future__ import annotations

from typing import Literal

import numpy as np

from stillroom.errors import InputError
from stillroom.screening._checks import Array
from stillroom.screening.interactions import Interactions
from stillroom.screening.kernels.algebra import smallest_eigenvalue
from stillroom.screening.options import ScreeningDataOptions

__all__ = ["similarity_notes", "with_similarities"]

LONG = 200  # sequences from which their comparison takes long enough to show how far it is
ROUNDING = 1e-6  # similarities are often written with six decimals


def with_similarities(data: Interactions, options: ScreeningDataOptions) -> Interactions:
    """Return the data with both similarities, computed where they are missing or asked for.

    Args:
        data: The data, with similarities, or with structures and sequences.
        options: ``drug_kernel`` and ``target_kernel`` are used.

    Raises:
        InputError: What a similarity is computed from is missing too, or holds what cannot be read.
        MissingExtraError: RDKit or parasail is needed and not installed.

    Example:
        >>> data = Interactions(
        ...     name="two", labels=np.eye(2), drugs=("a", "b"), targets=("x", "y"), drug_similarity=np.eye(2),
        ...     sequences=("MKVLA", "MKVIA"),
        ... )
        >>> whole = with_similarities(data, ScreeningDataOptions(target_kernel="spectrum"))
        >>> whole.target_similarity.round(4).tolist()
        [[1.0, 0.3333], [0.3333, 1.0]]
    """
    drugs, about_drugs = _drug_similarity(data, options)
    targets, about_targets = _target_similarity(data, options)
    notes = (*data.notes, *about_drugs, *about_targets)
    return data.replace(drug_similarity=drugs, target_similarity=targets, notes=notes)


def _drug_similarity(data: Interactions, options: ScreeningDataOptions) -> tuple[Array, list[str]]:
    kernel = options.drug_kernel
    given = data.drug_similarity
    if given is not None and kernel in ("auto", "given"):
        return given, []
    if kernel == "given":
        raise InputError(f"{data.name} brings no similarity of drugs; set data.drug_kernel to morgan or maccs")
    if data.smiles is None:
        if given is not None:
            raise InputError(f"{data.name} brings no SMILES for {kernel}; set data.drug_kernel to given")
        raise InputError(
            f"{data.name} has neither similarities nor SMILES of the drugs; add the file that holds either, or give a "
            "table with a column smiles"
        )
    from stillroom.screening.kernels.chemical import tanimoto_kernel

    fingerprint: Literal["morgan", "maccs"] = "maccs" if kernel == "maccs" else "morgan"
    similarity = tanimoto_kernel(data.smiles, fingerprint=fingerprint)
    return similarity, [f"similarity of drugs: Tanimoto of {fingerprint} fingerprints"]


def _target_similarity(data: Interactions, options: ScreeningDataOptions) -> tuple[Array, list[str]]:
    kernel = options.target_kernel
    given = data.target_similarity
    if given is not None and kernel in ("auto", "given"):
        return given, []
    if kernel == "given":
        raise InputError(
            f"{data.name} brings no similarity of targets; give data.target_similarity_file, or set data.target_kernel "
            "to smith-waterman, spectrum or mismatch"
        )
    if data.sequences is None:
        if given is not None:
            raise InputError(
                f"{data.name} brings no sequences for {kernel}; give data.fasta, or set data.target_kernel to given"
            )
        raise InputError(
            f"{data.name} has neither similarities nor sequences of the targets; give data.target_similarity_file, or "
            "data.fasta with their sequences"
        )
    from stillroom.screening.kernels.genomic import mismatch_kernel, smith_waterman_kernel, spectrum_kernel

    if kernel == "spectrum":
        return spectrum_kernel(data.sequences), ["similarity of targets: spectrum kernel"]
    if kernel == "mismatch":
        return mismatch_kernel(data.sequences), ["similarity of targets: mismatch kernel"]
    similarity = smith_waterman_kernel(data.sequences, show_progress=len(data.sequences) >= LONG)
    return similarity, ["similarity of targets: normalised Smith-Waterman scores"]


def similarity_notes(matrix: Array, name: str) -> tuple[str, ...]:
    """Return sentences about what a similarity matrix lacks: symmetry, the range 0..1, non-negative eigenvalues.

    Args:
        matrix: As it was read, before it is made symmetric, [N, N].
        name: What the sentences call it.

    Example:
        >>> similarity_notes(np.array([[1.0, 0.5], [0.25, 1.0]]), "drugs")
        ('drugs: not symmetric, entries differ by up to 0.25; their mean is taken',)
    """
    notes = []
    difference = float(np.abs(matrix - matrix.T).max())
    if difference > ROUNDING:
        notes.append(f"{name}: not symmetric, entries differ by up to {difference:.3g}; their mean is taken")
    low, high = float(matrix.min()), float(matrix.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        notes.append(f"{name}: not within 0..1, from {low:.3g} to {high:.3g}")
    smallest = smallest_eigenvalue((matrix + matrix.T) / 2)
    if smallest < -ROUNDING * len(matrix):
        notes.append(f"{name}: not positive semi-definite, the smallest eigenvalue is {smallest:.3g}")
    return tuple(notes)
