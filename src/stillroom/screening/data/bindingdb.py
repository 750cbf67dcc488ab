"""Measurements exported from BindingDB.

M. K. Gilson et al., "BindingDB in 2015: a public database for medicinal chemistry, computational chemistry and systems
pharmacology", Nucleic Acids Research 44(D1), 2016.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from stillroom.errors import InputError
from stillroom.screening.data._exports import Measurement, columns_by_name, from_measurements
from stillroom.screening.data._files import read_rows
from stillroom.screening.data._measurements import parse_affinity
from stillroom.screening.interactions import Interactions

__all__ = ["read_bindingdb"]

VALUES = ("ki", "ic50", "kd", "ec50")
COLUMNS = {
    "smiles": ("ligand smiles",),
    "drug": ("bindingdb monomerid",),
    "target": ("target name",),
    "sequence": ("bindingdb target chain sequence", "bindingdb target chain sequence 1"),
    "chains": (
        "number of protein chains in target (>1 implies a multichain complex)",
        "number of protein chains in target",
    ),
    **{value: (f"{value} (nm)",) for value in VALUES},
}


def read_bindingdb(file: Path, *, threshold: float = 1000.0) -> Interactions:
    """Read a table of measurements; a pair interacts at most at the threshold.

    The columns are found by name: Ligand SMILES, BindingDB MonomerID, Target Name, BindingDB Target Chain Sequence, and
    Ki, IC50, Kd and EC50 in nM, of which every value there is counts as one measurement. Rows without structure,
    sequence or value and those of several chains are left out and counted. Targets are told apart by their sequence;
    several of one name are numbered.

    Args:
        file: Tab-separated, gzipped or not.
        threshold: Largest concentration that is an interaction, in nM.

    Raises:
        InputError: A column is missing, the file is damaged, or no row can be used.
    """
    table = read_rows(file, "\t", quoted=False)  # names of compounds hold quotes
    _, header = next(table, (1, []))
    if not header:
        raise InputError(f"{file} is empty")
    place = columns_by_name(header, COLUMNS)
    for key in ("smiles", "target", "sequence"):
        if key not in place:
            raise InputError(f"{file} has no column {COLUMNS[key][0]!r}; it must be a tab-separated export")
    if not any(value in place for value in VALUES):
        raise InputError(f"{file} has none of the columns {', '.join(f'{value} (nm)' for value in VALUES)}")
    dropped: Counter[str] = Counter()
    measurements: list[Measurement] = []
    smiles: dict[str, str] = {}
    names: dict[str, str] = {}  # of every sequence
    rows = 0
    for _, cells in table:
        rows += 1
        if len(cells) > len(header):
            dropped["more cells than columns"] += 1
            continue
        cells += [""] * (len(header) - len(cells))  # blanks at the end of a row may be left out
        row = {key: cells[at] for key, at in place.items()}
        sequence = "".join(row["sequence"].split()).upper()
        if not (row["smiles"] and sequence):
            dropped["no structure or sequence"] += 1
            continue
        if row.get("chains", "") not in ("", "1"):
            dropped["a target of several chains"] += 1
            continue
        values = [parse_affinity(row[value]) for value in VALUES if row.get(value)]
        found = [value for value in values if value is not None and value[1] > 0]
        if not found:
            dropped["no value"] += 1
            continue
        drug = row.get("drug") or row["smiles"]
        if smiles.setdefault(drug, row["smiles"]) != row["smiles"]:
            dropped["another structure under the same name"] += 1
            continue
        names.setdefault(sequence, row["target"] or "unnamed")
        measurements += [((drug, sequence), *value) for value in found]
    return from_measurements(
        file,
        measurements,
        smiles,
        sequences={sequence: sequence for sequence in names},
        target_names=_distinct(names),
        threshold=threshold,
        dropped=dropped,
        rows=rows,
    )


def _distinct(names: dict[str, str]) -> dict[str, str]:
    """Number the names that several sequences share."""
    counts, seen = Counter(names.values()), Counter[str]()
    distinct = {}
    for sequence, name in names.items():
        seen[name] += 1
        distinct[sequence] = name if counts[name] == 1 else f"{name} #{seen[name]}"
    return distinct
