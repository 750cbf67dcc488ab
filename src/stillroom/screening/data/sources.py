"""Where drug-target data come from: names, folders and files, and what becomes of them by the user's options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from stillroom.data.sources import data_root
from stillroom.errors import InputError, unknown_name
from stillroom.screening.data._files import needed_file, read_fasta
from stillroom.screening.data._matrices import aligned, read_named_matrix
from stillroom.screening.data.affinities import read_davis, read_kiba
from stillroom.screening.data.bindingdb import read_bindingdb
from stillroom.screening.data.chembl import read_chembl
from stillroom.screening.data.generated import draw_interactions
from stillroom.screening.data.gold_standard import read_gold_standard
from stillroom.screening.data.tables import read_table
from stillroom.screening.interactions import Interactions
from stillroom.screening.kernels.genomic import invalid_residues
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.similarities import similarity_notes

__all__ = ["load_interactions", "read_from"]

GOLD_STANDARD = "dti-gold-standard"
TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_GENERATED = 30  # purpose of the random stream


def load_interactions(options: ScreeningDataOptions) -> Interactions:
    """Load drugs, targets and their known interactions, with what similarities the data bring.

    What they do not bring is computed by :func:`stillroom.screening.similarities.with_similarities`.

    Args:
        options: Which data set, and how it is read.

    Raises:
        InputError: The name is unknown, files are missing or damaged, or the data cannot honour an option.

    Example:
        >>> load_interactions(ScreeningDataOptions()).shape
        (60, 30)
    """
    kind, _, rest = options.name.partition(":")
    own = kind not in _READERS and options.name.lower().endswith(TABLES)
    if not own and kind not in _READERS:
        raise unknown_name("screening data set", options.name, (*_KNOWN, "FILE.csv", "FILE.tsv"))
    if options.threshold is not None and (kind in _LABELLED):
        raise InputError(f"{options.name} brings labels and no affinities; leave data.threshold out")
    if options.columns and not own:
        raise InputError(f"data.columns is for tables of your own, and {options.name} is none; leave it out")
    if options.interacts == "at-least" and not own and kind != "kiba":
        raise InputError(f"data.interacts is for tables of your own, and {options.name} is none; leave it out")
    if options.on_bad_rows == "skip" and not own:
        raise InputError(f"data.on_bad_rows is for tables of your own, and {options.name} is none; leave it out")
    data = _read_own(options) if own else _READERS[kind](options, rest)
    notes = [*data.notes, *_shared("drugs", data.smiles, "SMILES")]
    if options.fasta is not None:
        data = data.replace(sequences=_sequences(needed_file(options.fasta), data))
        notes.append(f"sequences from {options.fasta.name}")
    notes += _shared("targets", data.sequences, "sequence")
    if options.target_similarity_file is not None:
        matrix = read_named_matrix(needed_file(options.target_similarity_file))
        similarity, _ = aligned(matrix, data.targets, options.name)
        data = data.replace(target_similarity=similarity)
        notes.append(f"similarity of targets from {options.target_similarity_file.name}")
        notes += similarity_notes(similarity, "similarity of targets")
    return data.replace(notes=notes)


def read_from(options: ScreeningDataOptions) -> list[Path]:
    """Return the files and folders of the user's the data are read from."""
    kind, _, rest = options.name.partition(":")
    named = Path(rest or options.name).expanduser()
    places = (named.parent if kind == "gold" else named, options.fasta, options.target_similarity_file)
    return [place for place in places if place is not None and place.exists()]


def _read_generated(options: ScreeningDataOptions, rest: str) -> Interactions:
    if rest:
        raise InputError("generated takes no path; its options are data.drugs, data.targets and data.seed")
    generator = np.random.default_rng((options.seed, _GENERATED))
    return draw_interactions(drugs=options.drugs, targets=options.targets, generator=generator)


def _read_delivered(options: ScreeningDataOptions, rest: str) -> Interactions:
    name = options.name.partition(":")[0]
    if rest:
        raise InputError(f"{name} takes no path; for files elsewhere give gold:FOLDER/PREFIX")
    root = data_root()
    if root is None:
        raise InputError(
            "no folder of data sets: neither STILLROOM_DATA nor ../shared/data is there; set STILLROOM_DATA to the "
            f"folder that holds {GOLD_STANDARD}/, or give gold:FOLDER/{name}"
        )
    return read_gold_standard(root / GOLD_STANDARD, name)


def _read_gold(options: ScreeningDataOptions, rest: str) -> Interactions:
    path = Path(rest).expanduser()
    if not path.name or not path.parent.is_dir():
        raise InputError(f"gold needs a folder and the prefix of its files, gold:FOLDER/PREFIX, not {rest!r}")
    return read_gold_standard(path.parent, path.name)


def _read_davis(options: ScreeningDataOptions, rest: str) -> Interactions:
    threshold = 30.0 if options.threshold is None else options.threshold
    return read_davis(_folder("davis", rest), threshold=threshold, allow_pickle=options.allow_pickle)


def _read_kiba(options: ScreeningDataOptions, rest: str) -> Interactions:
    threshold = 12.1 if options.threshold is None else options.threshold
    return read_kiba(_folder("kiba", rest), threshold=threshold, allow_pickle=options.allow_pickle)


def _read_chembl(options: ScreeningDataOptions, rest: str) -> Interactions:
    return read_chembl(_file("chembl", rest), threshold=_nanomolar(options))


def _read_bindingdb(options: ScreeningDataOptions, rest: str) -> Interactions:
    return read_bindingdb(_file("bindingdb", rest), threshold=_nanomolar(options))


def _read_own(options: ScreeningDataOptions) -> Interactions:
    if options.threshold is not None and options.interacts == "at-most":
        _nanomolar(options)
    return read_table(
        needed_file(Path(options.name)),
        threshold=options.threshold,
        interacts=options.interacts,
        columns=options.columns,
        on_bad_rows=options.on_bad_rows,
    )


_READERS: dict[str, Callable[[ScreeningDataOptions, str], Interactions]] = {
    "generated": _read_generated,
    "nr": _read_delivered,
    "gpcr": _read_delivered,
    "ic": _read_delivered,
    "e": _read_delivered,
    "gold": _read_gold,
    "davis": _read_davis,
    "kiba": _read_kiba,
    "chembl": _read_chembl,
    "bindingdb": _read_bindingdb,
}
_LABELLED = ("generated", "nr", "gpcr", "ic", "e", "gold")
_KNOWN = (
    *("generated", "nr", "gpcr", "ic", "e", "gold:FOLDER/PREFIX"),
    *("davis:FOLDER", "kiba:FOLDER", "chembl:FILE", "bindingdb:FILE"),
)


def _nanomolar(options: ScreeningDataOptions) -> float:
    threshold = 1000.0 if options.threshold is None else options.threshold
    if threshold <= 0:
        raise InputError(f"data.threshold is {threshold:g}; a concentration is above 0")
    return threshold


def _folder(kind: str, path: str) -> Path:
    if not path:
        raise InputError(f"{kind} needs a folder: {kind}:FOLDER")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} (looked in {Path.cwd()})")
    return folder


def _file(kind: str, path: str) -> Path:
    if not path:
        raise InputError(f"{kind} needs a file: {kind}:FILE")
    return needed_file(Path(path))


def _sequences(file: Path, data: Interactions) -> list[str]:
    """Return the sequences of the targets, found by name."""
    found: Mapping[str, str] = read_fasta(file)
    # KEGG writes hsa:5742 in its sequences, the gold standard hsa5742.
    found = {**{name.replace(":", ""): sequence for name, sequence in found.items()}, **found}
    lacking = [target for target in data.targets if target not in found]
    if lacking:
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise InputError(
            f"{file} has no sequence of {lacking[0]!r}{more}; the first word of a header must be a target's name"
        )
    sequences = [found[target] for target in data.targets]
    for position, letters in invalid_residues(sequences):
        problem = f"has letters that are no residues: {letters[:20]!r}" if letters else "is empty"
        raise InputError(f"{file}: the sequence of {data.targets[position]!r} {problem}")
    return sequences


def _shared(kind: str, texts: Sequence[str] | None, what: str) -> list[str]:
    """Say how many drugs or targets cannot be told apart: those that are held out are known from the others."""
    twice = sum(count for count in Counter(texts or ()).values() if count > 1)
    return [f"{twice} {kind} share their {what} with others"] if twice else []
