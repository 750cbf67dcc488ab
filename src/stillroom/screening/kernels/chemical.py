"""Similarities of drugs from their structures: fingerprints and the Tanimoto kernel."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stillroom.errors import InputError, MissingExtraError
from stillroom.screening._checks import Array, in_range, one_of

__all__ = [
    "Fingerprint",
    "canonical_smiles",
    "fingerprints",
    "invalid_smiles",
    "parsed_smiles",
    "tanimoto",
    "tanimoto_kernel",
]

Fingerprint = Literal["morgan", "maccs"]

BLOCK = 1024  # rows and columns compared at a time; their bits and products take a few tens of megabytes


def parsed_smiles(smiles: Sequence[str]) -> list[Any]:
    """Return RDKit's molecule for each SMILES, None for those that are none.

    A SMILES is one word with at least one atom: a name behind it is refused, and so is the empty text, which RDKit
    would take. What RDKit has to say about the others is kept off the terminal.

    Raises:
        InputError: One string was given instead of a sequence of them.
        MissingExtraError: RDKit is not installed.
    """
    try:
        from rdkit import Chem, rdBase
    except ModuleNotFoundError:
        raise MissingExtraError("rdkit", "screening") from None
    if isinstance(smiles, str):
        # Each letter of it might be a valid SMILES.
        raise InputError(f"smiles is the string {reprlib.repr(smiles)}; give a list of strings")
    with rdBase.BlockLogs():
        words = [isinstance(text, str) and len(text.split()) == 1 for text in smiles]
        return [Chem.MolFromSmiles(text) if word else None for text, word in zip(smiles, words, strict=True)]


def invalid_smiles(smiles: Sequence[str]) -> list[tuple[int, str]]:
    """Return position (counted from 0) and text of all that are no SMILES, in order.

    Raises:
        InputError: One string was given instead of a sequence of them.
        MissingExtraError: RDKit is not installed.

    Example:
        >>> invalid_smiles(["CCO", "C1CC", ""])
        [(1, 'C1CC'), (2, '')]
    """
    found = zip(smiles, parsed_smiles(smiles), strict=True)
    return [(number, str(text)) for number, (text, molecule) in enumerate(found) if molecule is None]


def canonical_smiles(smiles: Sequence[str]) -> list[str]:
    """Return one spelling for each structure, with its stereochemistry and isotopes: equal texts, equal structures.

    Raises:
        InputError: There is none, or one cannot be read; the message names its position.
        MissingExtraError: RDKit is not installed.

    Example:
        >>> canonical_smiles(["OCC", "C(O)C"])
        ['CCO', 'CCO']
    """
    molecules = _molecules(smiles)
    from rdkit import Chem

    return [Chem.MolToSmiles(molecule) for molecule in molecules]


def fingerprints(
    smiles: Sequence[str], *, fingerprint: Fingerprint = "morgan", radius: int = 2, bits: int = 2048
) -> NDArray[np.uint8]:
    """Return which substructures each molecule has, as zeros and ones.

    ``morgan`` is the extended-connectivity fingerprint: D. Rogers, M. Hahn, "Extended-connectivity fingerprints",
    Journal of Chemical Information and Modeling 50(5), 2010; radius 2 is called ECFP4 there. ``maccs`` are the 166
    public keys: J. L. Durant, B. A. Leland, D. R. Henry, J. G. Nourse, "Reoptimization of MDL keys for use in drug
    discovery", Journal of Chemical Information and Computer Sciences 42(6), 2002; the first of the 167 bits is
    always 0.

    Args:
        smiles: Structures, one each.
        fingerprint: Which of the two.
        radius: Bonds around each atom, of ``morgan`` alone.
        bits: Length, of ``morgan`` alone.

    Shapes:
        -> [N, bits], [N, 167] for ``maccs``.

    Raises:
        InputError: An option is outside its range, there is no SMILES, or one cannot be read; the message names its
            position.
        MissingExtraError: RDKit is not installed.

    Example:
        >>> fingerprints(["CCO", "CCN"], fingerprint="maccs").sum(axis=1).tolist()
        [9, 10]
    """
    one_of("fingerprint", fingerprint, get_args(Fingerprint))
    in_range("radius", radius, 0, 10, whole=True)
    in_range("bits", bits, 8, 1 << 20, whole=True)
    molecules = _molecules(smiles)
    from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors

    if fingerprint == "morgan":
        generator = rdFingerprintGenerator.GetMorganGenerator(radius=int(radius), fpSize=int(bits))
        return np.stack([generator.GetFingerprintAsNumPy(molecule) for molecule in molecules])
    keys = np.zeros((len(molecules), 167), dtype=np.uint8)
    for row, molecule in zip(keys, molecules, strict=True):
        row[list(rdMolDescriptors.GetMACCSKeysFingerprint(molecule).GetOnBits())] = 1
    return keys


def tanimoto(a: ArrayLike, b: ArrayLike | None = None) -> Array:
    """Return the share of common bits: ``T[i, j] = |a_i and b_j| / |a_i or b_j|``, from 0 to 1.

    D. J. Rogers, T. T. Tanimoto, "A computer program for classifying plants", Science 132, 1960. It is a kernel:
    L. Ralaivola, S. J. Swamidass, H. Saigo, P. Baldi, "Graph kernels for chemical informatics", Neural Networks 18(8),
    2005. Two fingerprints without any bit are 1 similar by convention, so that the diagonal is 1; one without bits and
    one with some are 0 similar.

    Computed block by block: next to the result little memory is needed.

    Args:
        a: Zeros and ones, a row each.
        b: The same for the columns of the result; ``a`` itself unless given.

    Shapes:
        a [N, bits], b [M, bits] -> [N, M].

    Raises:
        InputError: The bits are no matrix, hold something else than 0 and 1, or differ in length.

    Example:
        >>> tanimoto(np.array([[1, 1, 0], [0, 1, 1]])).round(4).tolist()
        [[1.0, 0.3333], [0.3333, 1.0]]
    """
    left = _bits(a, "a")
    right = left if b is None else _bits(b, "b")
    if left.shape[1] != right.shape[1]:
        raise InputError(f"the fingerprints differ in length, {left.shape[1]} and {right.shape[1]} bits; use one kind")
    similarity = np.empty((len(left), len(right)))
    for i in range(0, len(left), BLOCK):
        # Counts below 2^24 are exact in single precision.
        rows = left[i : i + BLOCK].astype(np.float32)
        for j in range(0, len(right), BLOCK):
            columns = right[j : j + BLOCK].astype(np.float32)
            common = rows @ columns.T
            either = rows.sum(axis=1)[:, None] + columns.sum(axis=1) - common
            block = similarity[i : i + BLOCK, j : j + BLOCK]
            block[:] = 1.0
            np.divide(common, either, out=block, where=either > 0, dtype=np.float64)
    return similarity


def tanimoto_kernel(
    smiles: Sequence[str], *, fingerprint: Fingerprint = "morgan", radius: int = 2, bits: int = 2048
) -> Array:
    """Return the Tanimoto similarities of structures, see :func:`fingerprints` and :func:`tanimoto`.

    Args:
        smiles: Structures, one each.
        fingerprint: What is compared.
        radius: Bonds around each atom, of ``morgan`` alone.
        bits: Length, of ``morgan`` alone.

    Shapes:
        -> [N, N].

    Raises:
        InputError: An option is outside its range, there is no SMILES, or one cannot be read; the message names its
            position.
        MissingExtraError: RDKit is not installed.

    Example:
        >>> tanimoto_kernel(["CCO", "OCC", "CCN"]).round(4).tolist()
        [[1.0, 1.0, 0.3333], [1.0, 1.0, 0.3333], [0.3333, 0.3333, 1.0]]
    """
    return tanimoto(fingerprints(smiles, fingerprint=fingerprint, radius=radius, bits=bits))


def _molecules(smiles: Sequence[str]) -> list[Any]:
    molecules = parsed_smiles(smiles)
    if not molecules:
        raise InputError("there are no SMILES; give at least one")
    bad = [(number, text) for number, text in enumerate(smiles) if molecules[number] is None]
    if bad:
        number, text = bad[0]
        more = f", nor can {len(bad) - 1} more" if len(bad) > 1 else ""
        raise InputError(
            f"the SMILES at position {number} (counted from 0), {reprlib.repr(text)}, cannot be read{more}; mend or "
            "remove it"
        )
    return molecules


def _bits(values: ArrayLike, name: str) -> NDArray[Any]:
    bits = np.asarray(values)
    if bits.ndim != 2:
        raise InputError(f"{name} has shape {list(bits.shape)}; fingerprints are [N, bits]")
    if bits.dtype == bool:
        return bits
    odd = np.flatnonzero(((bits != 0) & (bits != 1)).any(axis=1))
    if len(odd):
        raise InputError(f"row {odd[0]} of {name} (counted from 0) holds something else than 0 and 1")
    return bits
