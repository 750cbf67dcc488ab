"""The affinity sets Davis and KIBA, in the text files they were published as and in those of DeepDTA.

M. I. Davis et al., "Comprehensive analysis of kinase inhibitor selectivity", Nature Biotechnology 29, 2011; matrices of
T. Pahikkala et al., "Toward more realistic drug-target interaction predictions", Briefings in Bioinformatics 16(2),
2015. J. Tang et al., "Making sense of large-scale kinase inhibitor bioactivity data sets", Journal of Chemical
Information and Modeling 54(3), 2014; filtered by T. He et al., "SimBoost", Journal of Cheminformatics 9, 2017. The
other layout: H. Öztürk, A. Özgür, E. Ozkirimli, "DeepDTA: deep drug-target binding affinity prediction",
Bioinformatics 34(17), 2018.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stillroom.errors import InputError
from stillroom.screening._checks import Array
from stillroom.screening.data._files import file_in, read_lines
from stillroom.screening.data._matrices import read_matrix
from stillroom.screening.data._structures import unreadable_sequences, unreadable_smiles
from stillroom.screening.interactions import Interactions
from stillroom.screening.kernels.algebra import normalise_kernel
from stillroom.screening.similarities import similarity_notes

__all__ = ["read_davis", "read_kiba"]

PERCENT = 1.5  # a largest similarity above it means percentages


class _Layout(NamedTuple):
    """File names of one set; the first that is there is read."""

    affinities: tuple[str, ...]
    drug_names: tuple[str, ...]
    target_names: tuple[str, ...]
    drug_similarity: tuple[str, ...]
    target_similarity: tuple[str, ...]
    target_scores: tuple[str, ...]  # raw Smith-Waterman scores


_LIGANDS = ("ligands_can.txt", "ligands_iso.txt")
_PROTEINS = ("proteins.txt", "kiba_proteins.txt")
_DAVIS = _Layout(
    affinities=(
        "drug-target_interaction_affinities_Kd__Davis_et_al.2011v1.txt",
        "drug-target_interaction_affinities_Kd__Davis_et_al.2011.txt",
    ),
    drug_names=("drug_PubChem_CIDs.txt",),
    target_names=("target_gene_names.txt",),
    drug_similarity=("drug-drug_similarities_2D.txt",),
    target_similarity=("target-target_similarities_WS_normalized.txt",),
    target_scores=("target-target_similarities_WS.txt",),
)
_KIBA = _Layout(
    affinities=("kiba_binding_affinity_v2.txt",),
    drug_names=(),
    target_names=(),
    drug_similarity=("kiba_drug_sim.txt",),
    target_similarity=("kiba_target_sim.txt",),
    target_scores=(),
)


def read_davis(folder: Path, *, threshold: float = 30.0, allow_pickle: bool = False) -> Interactions:
    """Read the Davis set: dissociation constants in nM of kinase inhibitors; a pair interacts at most at the threshold.

    Args:
        folder: Where the files are, text matrices or DeepDTA's.
        threshold: Largest constant that is an interaction, in nM.
        allow_pickle: Whether the pickle ``Y`` may be read, where there is no text matrix.

    Raises:
        InputError: A file is missing or damaged, sizes disagree, or only a pickle is there and it is not allowed.
    """
    return _read(folder, "davis", _DAVIS, threshold, allow_pickle, at_least=False)


def read_kiba(folder: Path, *, threshold: float = 12.1, allow_pickle: bool = False) -> Interactions:
    """Read the KIBA set: scores that rise with the bioactivity; a pair interacts at least at the threshold.

    Args:
        folder: Where the files are, text matrices or DeepDTA's.
        threshold: Smallest score that is an interaction.
        allow_pickle: Whether the pickle ``Y`` may be read, where there is no text matrix.

    Raises:
        InputError: A file is missing or damaged, sizes disagree, or only a pickle is there and it is not allowed.
    """
    return _read(folder, "kiba", _KIBA, threshold, allow_pickle, at_least=True)


def _read(
    folder: Path, name: str, layout: _Layout, threshold: float, allow_pickle: bool, *, at_least: bool
) -> Interactions:
    affinities, file = _affinities(folder, layout, allow_pickle)
    m, n = affinities.shape
    drugs, smiles, about_drugs = _side(folder, "drug", _LIGANDS, layout.drug_names, m, file)
    targets, sequences, about_targets = _side(folder, "target", _PROTEINS, layout.target_names, n, file)
    notes = [f"pairs interact at {threshold:g} or {'more' if at_least else 'less'}", *about_drugs, *about_targets]
    drug_similarity = _similarity(folder, "drug", layout.drug_similarity, m, _shares, notes)
    target_similarity = _similarity(folder, "target", layout.target_similarity, n, _shares, notes)
    if target_similarity is None:
        target_similarity = _similarity(folder, "target", layout.target_scores, n, _normalised, notes)
    measured = ~np.isnan(affinities)
    labels = measured & (affinities >= threshold if at_least else affinities <= threshold)
    if not labels.any():
        raise InputError(f"{file}: no pair interacts at {threshold:g}; change data.threshold")
    return Interactions(
        name=name,
        labels=labels.astype(np.float64),
        drugs=drugs,
        targets=targets,
        measured=measured,
        smiles=smiles,
        sequences=sequences,
        drug_similarity=drug_similarity,
        target_similarity=target_similarity,
        notes=notes,
    )


def _affinities(folder: Path, layout: _Layout, allow_pickle: bool) -> tuple[Array, Path]:
    file = file_in(folder, *layout.affinities)
    if file is not None:
        return read_matrix(file, missing=True), file
    file = folder / "Y"
    if not file.is_file():
        raise InputError(f"{folder} holds neither {layout.affinities[0]} nor Y, the affinities; put one of them there")
    if not allow_pickle:
        raise InputError(
            f"{file} is a pickle, which can run code when opened; put {layout.affinities[0]} beside it, or set "
            "data.allow_pickle, which builds nothing from it but an array of numbers"
        )
    return _read_pickle(file), file


def _side(
    folder: Path, kind: str, texts: tuple[str, ...], names: tuple[str, ...], size: int, origin: Path
) -> tuple[list[str], list[str] | None, list[str]]:
    """Return names, structures or sequences where there are any, and notes."""
    file = file_in(folder, *texts)
    if file is not None:
        found = _read_texts(file)
        _check_size(file, len(found), f"{kind}s", origin, size)
        bad = unreadable_smiles(found.values()) if kind == "drug" else unreadable_sequences(found.values())
        for name, text in found.items():
            if text in bad:
                raise InputError(f"{file}: {text[:60]!r} of {name!r} cannot be read; mend or remove it")
        return list(found), list(found.values()), []
    file = file_in(folder, *names)
    if file is None:
        return [f"{kind[0].upper()}{place + 1}" for place in range(size)], None, [f"the {kind}s bring no names"]
    listed = [line.strip() for _, line in read_lines(file) if line.strip()]
    _check_size(file, len(listed), "names", origin, size)
    counts = Counter(listed)
    twice = sum(count for count in counts.values() if count > 1)
    if not twice:
        return listed, None, []
    # Variants of a kinase share its gene's name.
    distinct = [name if counts[name] == 1 else f"{name} #{place + 1}" for place, name in enumerate(listed)]
    return distinct, None, [f"{twice} {kind}s share their name with others; their position is added to it"]


def _read_texts(file: Path) -> dict[str, str]:
    """Read a JSON object from name to SMILES or sequence, in the order of the file."""
    try:
        pairs = json.loads("".join(line for _, line in read_lines(file)), object_pairs_hook=list)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, row {error.lineno} is no JSON: {error.msg}") from None
    except RecursionError:
        pairs = None  # nested too deeply to be names and texts
    found: dict[str, str] = {}
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not (isinstance(pair, tuple) and isinstance(pair[1], str) and pair[1].strip()):
            raise InputError(f"{file} must be one JSON object from name to SMILES or sequence")
        name, text = pair
        if name in found:
            raise InputError(f"{file}: {name!r} stands twice; a name may stand once")
        found[name] = text.strip()
    return found


def _similarity(
    folder: Path,
    kind: str,
    names: tuple[str, ...],
    size: int,
    prepare: Callable[[Array, Path, list[str]], Array],
    notes: list[str],
) -> Array | None:
    file = file_in(folder, *names)
    if file is None:
        return None
    matrix = read_matrix(file)
    if matrix.shape != (size, size):
        raise InputError(f"{file} is {matrix.shape[0]} x {matrix.shape[1]}, but there are {size} {kind}s")
    matrix = prepare(matrix, file, notes)
    notes += similarity_notes(matrix, f"similarity of {kind}s")
    return matrix


def _shares(matrix: Array, file: Path, notes: list[str]) -> Array:
    if matrix.max() <= PERCENT:
        return matrix
    notes.append(f"{file.name} holds percentages, divided by 100")
    return matrix / 100


def _normalised(matrix: Array, file: Path, notes: list[str]) -> Array:
    notes.append(f"{file.name} holds raw scores, divided by the geometric mean of the two self scores")
    return normalise_kernel(matrix, str(file))


def _check_size(file: Path, size: int, things: str, origin: Path, expected: int) -> None:
    if size != expected:
        raise InputError(f"{file} has {size} {things}, but {origin.name} has {expected}; they must agree")


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for the function by which newer pickles of older protocols spell bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it spells bytes as {encoding}")
    return text.encode("latin1")


def _read_pickle(file: Path) -> Array:
    """Read a pickled array of numbers; a pickle that names anything else than an array's parts is refused."""
    array = np.zeros(1)
    rebuild, frombuffer = array.__reduce__()[0], array.__reduce_ex__(5)[0]
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
    }
    for core in ("core", "_core"):
        allowed[f"numpy.{core}.multiarray", "_reconstruct"] = rebuild
        allowed[f"numpy.{core}.numeric", "_frombuffer"] = frombuffer

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise InputError(f"{file} is refused: it names {module}.{name}, which no array of numbers needs")
            return allowed[module, name]

    try:
        with file.open("rb") as stream:
            values = Reader(stream, encoding="latin1").load()
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file} is damaged or no pickle: {reason}") from None
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf" or values.ndim != 2 or not values.size:
        raise InputError(f"{file} is no matrix of numbers, a row per drug and a column per target")
    numbers: Array = values.astype(np.float64)
    if np.isinf(numbers).any():
        raise InputError(f"{file} holds infinite affinities; replace them")
    return numbers
