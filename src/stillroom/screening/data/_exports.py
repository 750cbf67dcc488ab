"""What the exports of databases share: columns by name, rows that say nothing, and the labels in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stillroom.errors import InputError
from stillroom.screening.data._measurements import label_matrices, labels_of
from stillroom.screening.data._structures import unreadable_sequences, unreadable_smiles
from stillroom.screening.interactions import Interactions

__all__ = ["Measurement", "columns_by_name", "from_measurements"]

Measurement = tuple[tuple[str, str], str, float]  # drug and target, relation, concentration in nM


def columns_by_name(header: Sequence[str], columns: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the position of every column that is there, the first of its name; case and underscores do not matter.

    Args:
        header: The first row.
        columns: What we call a column -> how its name may be spelt, in lower case with blanks.
    """
    spelt = [" ".join(name.lower().replace("_", " ").split()) for name in header]
    found = {}
    for key, names in columns.items():
        place = next((spelt.index(name) for name in names if name in spelt), None)
        if place is not None:
            found[key] = place
    return found


def from_measurements(
    file: Path,
    measurements: Iterable[Measurement],
    smiles: Mapping[str, str],
    *,
    sequences: Mapping[str, str] | None,
    target_names: Mapping[str, str],
    threshold: float,
    dropped: Counter[str],
    rows: int,
) -> Interactions:
    """Build the data of an export.

    Args:
        file: The export.
        measurements: Those of the rows that tell something.
        smiles: Structure of every drug.
        sequences: Sequence of every target, where the export has them.
        target_names: Name of every target.
        threshold: Largest concentration that is an interaction, in nM.
        dropped: Reason -> rows left out for it so far.
        rows: Rows there were.

    Raises:
        InputError: No pair is left, or none interacts.
    """
    bad_drugs = unreadable_smiles(smiles.values())
    bad_targets = unreadable_sequences(sequences.values()) if sequences is not None else {}
    kept: list[Measurement] = []
    for measurement in measurements:
        drug, target = measurement[0]
        if smiles[drug] in bad_drugs:
            dropped["a SMILES that cannot be read"] += 1
        elif sequences is not None and sequences[target] in bad_targets:
            dropped["a sequence with letters that are no residues"] += 1
        else:
            kept.append(measurement)
    labels, notes = labels_of(kept, threshold=threshold)
    left_out = [f"{reason} ({count})" for reason, count in dropped.most_common()]
    if not labels:
        reasons = f": {', '.join(left_out)}" if left_out else ""
        raise InputError(f"{file}: none of {rows} rows holds a measurement that can be used{reasons}")
    if left_out:
        notes.append(f"left out of {rows} rows: {', '.join(left_out)}")
    drugs = {drug: place for place, drug in enumerate(dict.fromkeys(drug for drug, _ in labels))}
    targets = {target: place for place, target in enumerate(dict.fromkeys(target for _, target in labels))}
    placed = {(drugs[drug], targets[target]): interacts for (drug, target), interacts in labels.items()}
    values, measured = label_matrices(placed, (len(drugs), len(targets)), str(file), by_threshold=True)
    return Interactions(
        name=file.name,
        labels=values,
        drugs=list(drugs),
        targets=[target_names[target] for target in targets],
        measured=measured,
        smiles=[smiles[drug] for drug in drugs],
        sequences=None if sequences is None else [sequences[target] for target in targets],
        notes=notes,
    )
