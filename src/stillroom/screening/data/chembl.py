"""Activities exported from ChEMBL.

B. Zdrazil et al., "The ChEMBL Database in 2023", Nucleic Acids Research 52(D1), 2024.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from stillroom.errors import InputError
from stillroom.screening.data._exports import Measurement, columns_by_name, from_measurements
from stillroom.screening.data._files import read_rows, separator
from stillroom.screening.data._measurements import parse_affinity
from stillroom.screening.interactions import Interactions

__all__ = ["read_chembl"]

COLUMNS = {
    "drug": ("molecule chembl id",),
    "smiles": ("smiles", "canonical smiles"),
    "target": ("target chembl id",),
    "type": ("standard type",),
    "relation": ("standard relation",),
    "value": ("standard value",),
    "units": ("standard units",),
    "pchembl": ("pchembl value",),
}
# What pChEMBL values are made of: concentrations of half the effect, and constants of binding.
TYPES = frozenset({"ic50", "xc50", "ec50", "ac50", "ed50", "ki", "kd", "potency"})
NANOMOLAR = {"m": 1e9, "mm": 1e6, "um": 1e3, "\u00b5m": 1e3, "\u03bcm": 1e3, "nm": 1.0, "pm": 1e-3, "fm": 1e-6}


def read_chembl(file: Path, *, threshold: float = 1000.0) -> Interactions:
    """Read a table of activities; a pair interacts at most at the threshold.

    The columns are found by name: Molecule ChEMBL ID, Smiles, Target ChEMBL ID, Standard Type, Standard Relation,
    Standard Value, Standard Units, pChEMBL Value. Values come from the standard ones in molar units, else from pChEMBL.
    Rows without structure, target or such a value are left out and counted. Sequences are not among them.

    Args:
        file: Separated by semicolons, commas or tabs, gzipped or not.
        threshold: Largest concentration that is an interaction, in nM; a pChEMBL value of 9 less its logarithm.

    Raises:
        InputError: A column is missing, the file is damaged, or no row can be used.
    """
    table = read_rows(file, separator(file))
    _, header = next(table, (1, []))
    if not header:
        raise InputError(f"{file} is empty")
    place = columns_by_name(header, COLUMNS)
    for key in ("drug", "smiles", "target"):
        if key not in place:
            raise InputError(f"{file} has no column {COLUMNS[key][0]!r}; export it too")
    if "pchembl" not in place and not {"value", "units"} <= set(place):
        raise InputError(f"{file} has neither 'pchembl value' nor 'standard value' and 'standard units'; export them")
    dropped: Counter[str] = Counter()
    measurements: list[Measurement] = []
    smiles: dict[str, str] = {}
    rows = 0
    for _, cells in table:
        rows += 1
        if len(cells) > len(header):
            dropped["more cells than columns"] += 1
            continue
        cells += [""] * (len(header) - len(cells))  # blanks at the end of a row may be left out
        row = {key: cells[at] for key, at in place.items()}
        if not (row["drug"] and row["smiles"] and row["target"]):
            dropped["no structure or target"] += 1
            continue
        if row.get("type") and row["type"].lower() not in TYPES:
            dropped["another type of activity"] += 1
            continue
        found = _nanomolar(row)
        if found is None:
            dropped["no value in molar units"] += 1
            continue
        if smiles.setdefault(row["drug"], row["smiles"]) != row["smiles"]:
            dropped["another structure under the same name"] += 1
            continue
        measurements.append(((row["drug"], row["target"]), *found))
    return from_measurements(
        file,
        measurements,
        smiles,
        sequences=None,
        target_names={target: target for (_, target), _, _ in measurements},
        threshold=threshold,
        dropped=dropped,
        rows=rows,
    )


def _nanomolar(row: dict[str, str]) -> tuple[str, float] | None:
    unit = NANOMOLAR.get(row.get("units", "").lower())
    # The relation is itself written in quotes.
    standard = parse_affinity(row.get("relation", "").strip("'\" ") + row.get("value", ""))
    if unit is not None and standard is not None and standard[1] > 0:
        return standard[0], standard[1] * unit
    logarithm = parse_affinity(row.get("pchembl", ""))
    if logarithm is not None and abs(logarithm[1]) < 100:
        return "=", float(10 ** (9 - logarithm[1]))
    return None
