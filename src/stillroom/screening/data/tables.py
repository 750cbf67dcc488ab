"""A table of one's own: structure, sequence and label of a pair each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from stillroom.errors import InputError, nearest, unknown_name
from stillroom.screening.data._files import Row, read_rows, separator
from stillroom.screening.data._measurements import label_matrices, labels_of, parse_affinity
from stillroom.screening.data._structures import unreadable_sequences, unreadable_smiles
from stillroom.screening.interactions import Interactions

__all__ = ["read_table"]

COLUMNS = ("smiles", "sequence", "label", "affinity", "drug", "target")

Pair = tuple[int, int]
Value = tuple[str, float]  # relation and number; a label is "=" and 0 or 1


def read_table(
    file: Path,
    *,
    threshold: float | None = None,
    interacts: Literal["at-most", "at-least"] = "at-most",
    columns: Sequence[str] = (),
    on_bad_rows: Literal["refuse", "skip"] = "refuse",
) -> Interactions:
    """Read a .csv or .tsv with a header and a pair each row.

    Columns, in any order and case: ``smiles``; ``sequence``, which may be absent where ``target`` is there; ``label``,
    0 or 1, or ``affinity``, a number that may be a bound such as ``>10000``; perhaps ``drug`` and ``target``, their
    names, D1, D2, ... and T1, T2, ... in order of appearance unless given. Other columns are left alone. A pair whose
    label or affinity is empty is to be predicted: it counts as not measured.

    A name stands for one structure or sequence, and a SMILES for one drug; targets may share their sequence. The same
    pair with the same label is counted once; with another label it is an error. Several affinities of a pair count
    by their median.

    Args:
        file: The table, gzipped or not; commas, semicolons or tabs separate.
        threshold: Affinity from which a pair interacts; with it the column ``affinity`` is read, not ``label``.
        interacts: Whether affinities at most or at least the threshold interact.
        columns: ``smiles=NAME`` and so on, where the table names them differently.
        on_bad_rows: refuse the table for a row that cannot be used, or skip such rows and count them.

    Raises:
        InputError: The file, its header or a row is wrong; the line names the row as an editor counts it.
    """
    table = read_rows(file, separator(file))
    top, header = next(table, (1, []))
    if not header:
        raise InputError(f"{file} is empty; it needs a header and a pair each row")
    place = _columns(file, top, header, columns)
    labelled = threshold is None
    for key, without in (("smiles", ()), ("sequence", ("target",)), ("label" if labelled else "affinity", ())):
        if key not in place and not any(other in place for other in without):
            raise InputError(_missing(file, top, header, key, place))
    rows = list(table)
    if not rows:
        raise InputError(f"{file} is empty but for its header")
    reader = _Reader(place, len(header), labelled, interacts == "at-least")
    reader.look_up(rows)
    bad: list[str] = []
    for number, cells in rows:
        problem = reader.take(number, cells)
        if problem:
            bad.append(f"{file}, {problem}")
    if bad and on_bad_rows == "refuse":
        others = f" ({len(bad) - 1} more rows are bad)" if len(bad) > 1 else ""
        raise InputError(f"{bad[0]}; mend it, or set data.on_bad_rows to skip{others}")
    if len(bad) == len(rows):
        raise InputError(f"{bad[0]}; none of the other rows can be used either")
    labels, notes = reader.labels(threshold)
    if bad:
        notes.append(f"{len(bad)} of {len(rows)} rows skipped, the first: {bad[0]}")
    drugs, targets = reader.drugs, reader.targets
    shape = (len(drugs.texts), len(targets.texts))
    values, measured = label_matrices(labels, shape, str(file), by_threshold=not labelled)
    return Interactions(
        name=file.name,
        labels=values,
        drugs=drugs.names(),
        targets=targets.names(),
        measured=measured,
        smiles=drugs.texts,
        sequences=targets.texts if "sequence" in place else None,
        notes=notes,
    )


@dataclass
class _Side:
    """The drugs or the targets, in order of appearance."""

    kind: str
    text: str  # what its structure or sequence is called
    unique: bool  # whether one text has one name: kinases that differ by phosphorylation share their sequence
    places: dict[str, int] = field(default_factory=dict)  # by name, or by text where there are no names
    texts: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)  # where each came first
    by_text: dict[str, int] = field(default_factory=dict)
    named: bool = True

    def conflict(self, name: str, text: str, number: int) -> str:
        """Return what contradicts an earlier row, if anything does."""
        place = self.places.get(name)
        if place is not None and self.texts[place] != text:
            return f"rows {self.rows[place]} and {number}: the {self.kind} {name!r} has two {self.text}; keep one"
        first = self.by_text.get(text)
        if place is None and self.unique and first is not None:
            other = list(self.places)[first]
            return (
                f"rows {self.rows[first]} and {number}: the {self.kind}s {other!r} and {name!r} have the same "
                f"{self.text}; give them one name"
            )
        return ""

    def put(self, name: str, text: str, number: int) -> int:
        if name not in self.places:
            self.places[name] = len(self.texts)
            self.by_text.setdefault(text, len(self.texts))
            self.texts.append(text)
            self.rows.append(number)
        return self.places[name]

    def names(self) -> list[str]:
        letter = self.kind[0].upper()
        return list(self.places) if self.named else [f"{letter}{place + 1}" for place in range(len(self.texts))]


class _Reader:
    """Takes the rows one by one; a row is used whole or not at all."""

    def __init__(self, place: Mapping[str, int], width: int, labelled: bool, at_least: bool) -> None:
        self.place, self.width, self.labelled, self.at_least = place, width, labelled, at_least
        self.drugs = _Side("drug", "SMILES", unique=True, named="drug" in place)
        self.targets = _Side("target", "sequences", unique=False, named="target" in place)
        self.values: list[tuple[Pair, Value]] = []
        self.label_rows: dict[Pair, tuple[int, Value]] = {}
        self.repeated = 0
        self.bad_smiles: frozenset[str] = frozenset()
        self.bad_sequences: dict[str, str] = {}

    def look_up(self, rows: Sequence[Row]) -> None:
        """Find all structures and sequences that cannot be read, in one go."""
        whole = [cells for _, cells in rows if len(cells) == self.width]
        self.bad_smiles = unreadable_smiles(text for cells in whole if (text := cells[self.place["smiles"]]))
        if "sequence" in self.place:
            self.bad_sequences = unreadable_sequences(text for cells in whole if (text := self._sequence(cells)))

    def _sequence(self, cells: Sequence[str]) -> str:
        return "".join(cells[self.place["sequence"]].split()) if "sequence" in self.place else ""

    def take(self, number: int, cells: Sequence[str]) -> str:
        """Use a row, or return what is wrong with it."""
        if len(cells) != self.width:
            return f"row {number} has {len(cells)} cells; the header has {self.width}"
        cell = {key: cells[at] for key, at in self.place.items()}
        smiles, sequence = cell["smiles"], self._sequence(cells)
        for key in ("smiles", "sequence", "drug", "target"):
            if key in cell and not cell[key]:
                return f"row {number}: {key} is empty"
        if smiles in self.bad_smiles:
            return f"row {number}: {smiles[:60]!r} is no SMILES that can be read"
        if sequence in self.bad_sequences:
            letters = self.bad_sequences[sequence]
            return f"row {number}: the sequence has letters that are no residues: {letters[:20]!r}"
        value, problem = self._value(cell["label" if self.labelled else "affinity"])
        if problem:
            return f"row {number}: {problem}"
        drug, target = cell.get("drug", smiles), cell.get("target", sequence)
        problem = self.drugs.conflict(drug, smiles, number) or self.targets.conflict(target, sequence, number)
        if problem:
            return problem
        pair = (self.drugs.places.get(drug, -1), self.targets.places.get(target, -1))
        if value is not None and pair in self.label_rows:
            first, earlier = self.label_rows[pair]
            if earlier != value:
                return f"rows {first} and {number}: the same pair is labelled {earlier[1]:g} and {value[1]:g}; keep one"
            self.repeated += 1
            return ""
        pair = (self.drugs.put(drug, smiles, number), self.targets.put(target, sequence, number))
        if value is not None:
            self.values.append((pair, value))
            if self.labelled:  # an affinity may be measured more than once
                self.label_rows[pair] = (number, value)
        return ""

    def _value(self, text: str) -> tuple[Value | None, str]:
        """Return the value of a cell, none if it is empty, and what is wrong with it."""
        if not text:
            return None, ""
        value = parse_affinity(text)
        if self.labelled:
            if value is None or value[0] != "=" or value[1] not in (0, 1):
                return None, (
                    f"the label is {text[:20]!r}; labels are 0, 1 or empty (affinities stand in a column affinity, "
                    "with data.threshold)"
                )
            return value, ""
        if value is None:
            return None, f"the affinity is {text[:20]!r}; it must be a number, perhaps behind < or >, or empty"
        if not self.at_least and value[1] <= 0:
            return None, f"the affinity is {text[:20]!r}; a concentration is above 0"
        return value, ""

    def labels(self, threshold: float | None) -> tuple[dict[Pair, bool], list[str]]:
        """Return the label of every measured pair, and what was decided."""
        if threshold is not None:
            every = ((pair, relation, number) for pair, (relation, number) in self.values)
            return labels_of(every, threshold=threshold, at_least=self.at_least)
        notes = [f"{self.repeated} rows repeat a pair with the same label; dropped"] if self.repeated else []
        return {pair: bool(number) for pair, (_, number) in self.values}, notes


def _columns(file: Path, top: int, header: Sequence[str], renamed: Sequence[str]) -> dict[str, int]:
    """Return the position of every column there is of those we know."""
    wanted = {key: key for key in COLUMNS}
    for item in renamed:
        key, equals, name = (part.strip() for part in item.partition("="))
        if not (equals and name):
            raise InputError(f"data.columns has {item!r}; it must be like smiles=NAME")
        if key not in COLUMNS:
            raise unknown_name("column in data.columns", key, COLUMNS)
        wanted[key] = name
    lower = [name.lower() for name in header]
    place = {}
    for key, name in wanted.items():
        count = lower.count(name.lower())
        if count > 1:
            raise InputError(f"{file}, row {top}: {count} columns are named {name!r}; keep one")
        if count:
            place[key] = lower.index(name.lower())
        elif key != name:
            raise InputError(f"{file}, row {top}: there is no column {name!r}{nearest(name, header)}")
    return place


def _missing(file: Path, top: int, header: Sequence[str], key: str, place: Mapping[str, int]) -> str:
    if key == "label" and "affinity" in place:
        return f"{file} has a column affinity and no label; give data.threshold, the affinity at which a pair interacts"
    names = ", ".join(repr(name[:30]) for name in header[:8])
    return f"{file}, row {top}: there is no column {key!r} among {names}; rename one, or give data.columns {key}=NAME"
