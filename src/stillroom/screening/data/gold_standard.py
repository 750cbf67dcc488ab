"""The gold standard of drug-target interactions, and other sets in its layout.

Y. Yamanishi, M. Araki, A. Gutteridge, W. Honda, M. Kanehisa, "Prediction of drug-target interaction networks from the
integration of chemical and genomic spaces", Bioinformatics 24(13), 2008.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stillroom.errors import InputError
from stillroom.screening._checks import Array
from stillroom.screening.data._files import file_in
from stillroom.screening.data._matrices import aligned, read_named_matrix
from stillroom.screening.interactions import Interactions
from stillroom.screening.similarities import similarity_notes

__all__ = ["read_gold_standard"]


def read_gold_standard(folder: Path, prefix: str) -> Interactions:
    """Read ``PREFIX_admat_dgc.txt`` and the similarities ``PREFIX_simmat_dc.txt`` and ``PREFIX_simmat_dg.txt``.

    Tab-separated, names in the first row and column, gzipped or not. Interactions have a row per target and a column
    per drug. A similarity may be absent; where its names stand in another order they are put in that of the
    interactions.

    Raises:
        InputError: The interactions are missing, a file is damaged, or the names of two files differ.
    """
    file = file_in(folder, f"{prefix}_admat_dgc.txt")
    if file is None:
        raise InputError(
            f"there are no interactions {prefix}_admat_dgc.txt (or .txt.gz) in {folder}; put the file there, or name "
            "the place as gold:FOLDER/PREFIX"
        )
    pairs = read_named_matrix(file)
    odd = np.argwhere((pairs.values != 0) & (pairs.values != 1))
    if len(odd):
        row, column = odd[0]
        raise InputError(
            f"{file}, row {pairs.numbers[row]}: {pairs.rows[row]!r} and {pairs.columns[column]!r} have "
            f"{pairs.values[row, column]:g}; interactions are 0 or 1"
        )
    notes: list[str] = []
    found: dict[str, Array] = {}
    for kind, ending, names in (("drug", "simmat_dc", pairs.columns), ("target", "simmat_dg", pairs.rows)):
        similarity = file_in(folder, f"{prefix}_{ending}.txt")
        if similarity is None:
            notes.append(f"no similarity of {kind}s is there: {prefix}_{ending}.txt is absent")
            continue
        values, reordered = aligned(read_named_matrix(similarity), names, file.name)
        if reordered:
            notes.append(f"{similarity.name} is put in the order of {file.name}")
        notes += similarity_notes(values, f"similarity of {kind}s")
        found[f"{kind}_similarity"] = values
    return Interactions(
        name=prefix,
        labels=pairs.values.T,
        drugs=pairs.columns,
        targets=pairs.rows,
        drug_similarity=found.get("drug_similarity"),
        target_similarity=found.get("target_similarity"),
        notes=notes,
    )
