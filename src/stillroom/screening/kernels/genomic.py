"""Similarities of targets from their amino acids: Smith-Waterman scores, spectrum and mismatch kernels.

Lower case counts as upper case. Residues that BLOSUM62 has no row for are read as their nearest relatives: U
(selenocysteine) as C, O (pyrrolysine) as K, J (leucine or isoleucine) as L.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from math import comb

import numpy as np
from numpy.typing import NDArray

from stillroom.errors import InputError, MissingExtraError
from stillroom.screening._checks import Array, in_range
from stillroom.screening.kernels.algebra import normalise_kernel
from stillroom.training.progress import counting

__all__ = ["invalid_residues", "mismatch_kernel", "smith_waterman_kernel", "spectrum_kernel"]

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
LETTERS = frozenset(AMINO_ACIDS + "BZXUOJ*" + AMINO_ACIDS.lower() + "bzxuoj")
RELATIVES = str.maketrans("UOJ", "CKL")
LONGEST = 14  # 20^14 k-mers can still be numbered in 64 bits
MOST_NEIGHBOURS = 500_000_000  # a twentieth of them is held at a time, which takes about two gigabytes


def invalid_residues(sequences: Sequence[str]) -> list[tuple[int, str]]:
    """Return position (counted from 0) and offending letters of sequences that cannot be read, in order.

    Read are the 20 amino acids, B, Z, X, U, O, J and ``*``, in both cases. An empty sequence offends with no letter.

    Raises:
        InputError: One string was given instead of a sequence of them.

    Example:
        >>> invalid_residues(["MKV", "M-K1-", ""])
        [(1, '-1'), (2, '')]
    """
    if isinstance(sequences, str):
        # Each letter of it would be a sequence.
        raise InputError(f"sequences is the string {reprlib.repr(sequences)}; give a list of strings")
    # What is no text, NaN say, spells residues once it is written out, and so it offends as a whole.
    offending = [
        "".join(letter for letter in dict.fromkeys(text) if letter not in LETTERS)
        if isinstance(text, str)
        else str(text)
        for text in sequences
    ]
    found = zip(sequences, offending, strict=True)
    return [(number, letters) for number, (text, letters) in enumerate(found) if letters or not text]


def smith_waterman_kernel(
    sequences: Sequence[str], *, gap_open: int = 10, gap_extend: int = 1, show_progress: bool = False
) -> Array:
    """Return normalised scores of the best local alignments: ``SW(a, b) / sqrt(SW(a, a) SW(b, b))``.

    T. F. Smith, M. S. Waterman, "Identification of common molecular subsequences", Journal of Molecular Biology
    147(1), 1981; normalised as in Y. Yamanishi, M. Araki, A. Gutteridge, W. Honda, M. Kanehisa, "Prediction of
    drug-target interaction networks from the integration of chemical and genomic spaces", Bioinformatics 24(13), 2008.
    Residues are compared with BLOSUM62; a gap of length L costs ``gap_open + (L - 1) gap_extend``. Where the first
    residue of a gap costs opening and extension, as in BLAST, the same gaps have an opening smaller by one extension.

    Scores are not those of a feature space: negative eigenvalues are possible, see
    :func:`~stillroom.screening.kernels.algebra.psd_repaired`.

    Args:
        sequences: Amino acids, one string each.
        gap_open: What the first residue of a gap costs.
        gap_extend: What each further one costs.
        show_progress: Whether to tell on standard error how far it is.

    Shapes:
        -> [N, N], ones on the diagonal.

    Raises:
        InputError: A gap's cost is outside its range, there is no sequence, or one cannot be read or is all X; the
            message names its position.
        MissingExtraError: parasail is not installed.

    Example:
        >>> smith_waterman_kernel(["MKVLA", "mkvla", "MKWLA"]).round(4).tolist()
        [[1.0, 1.0, 0.5939], [1.0, 1.0, 0.5939], [0.5939, 0.5939, 1.0]]
    """
    in_range("gap_extend", gap_extend, 1, 1000, whole=True)
    in_range("gap_open", gap_open, gap_extend, 1000, whole=True)
    residues = _residues(sequences)
    unknown = next((number for number, text in enumerate(residues) if set(text) == {"X"}), None)
    if unknown is not None:
        raise InputError(
            f"the sequence at position {unknown} (counted from 0) is all X and aligns with nothing, itself included; "
            "leave it out"
        )
    place = {text: number for number, text in enumerate(dict.fromkeys(residues))}
    scores = _alignment_scores(list(place), int(gap_open), int(gap_extend), show_progress)
    where = np.array([place[text] for text in residues])
    kernel: Array = normalise_kernel(scores, "Smith-Waterman scores")[np.ix_(where, where)]
    return kernel


def spectrum_kernel(sequences: Sequence[str], *, k: int = 3) -> Array:
    """Return the cosine of the counts of all k-mers.

    C. Leslie, E. Eskin, W. S. Noble, "The spectrum kernel: a string kernel for SVM protein classification", Pacific
    Symposium on Biocomputing, 2002: ``K(a, b) = sum over k-mers s of n_s(a) n_s(b)``, normalised to
    ``K(a, b) / sqrt(K(a, a) K(b, b))``. K-mers with B, Z, X or ``*`` are not counted: sharing an unknown residue says
    nothing.

    Args:
        sequences: Amino acids, one string each.
        k: Residues of a k-mer.

    Shapes:
        -> [N, N], ones on the diagonal.

    Raises:
        InputError: ``k`` is outside its range, there is no sequence, or one cannot be read or has no k-mer; the
            message names its position.
        MissingExtraError: SciPy is not installed.

    Example:
        >>> spectrum_kernel(["MKVL", "MKVA"], k=3).round(4).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    return _kmer_kernel(sequences, k, 0)


def mismatch_kernel(sequences: Sequence[str], *, k: int = 3, mismatches: int = 1) -> Array:
    """Return the cosine of the counts of all k-mers, where a k-mer also counts for those few residues away.

    C. S. Leslie, E. Eskin, A. Cohen, J. Weston, W. S. Noble, "Mismatch string kernels for discriminative protein
    classification", Bioinformatics 20(4), 2004: every k-mer of a sequence adds one to each of the ``20^k`` features it
    differs from in at most ``mismatches`` residues; normalised as :func:`spectrum_kernel`, which it is for no
    mismatches. Only features near k-mers that occur are stored.

    Args:
        sequences: Amino acids, one string each.
        k: Residues of a k-mer.
        mismatches: Residues that may differ, fewer than ``k``.

    Shapes:
        -> [N, N], ones on the diagonal.

    Raises:
        InputError: An option is outside its range or asks for too many features, there is no sequence, or one cannot
            be read or has no k-mer; the message names its position.
        MissingExtraError: SciPy is not installed.

    Example:
        >>> mismatch_kernel(["MKVL", "MKVA"], k=4, mismatches=1).round(4).tolist()
        [[1.0, 0.2597], [0.2597, 1.0]]
    """
    in_range("mismatches", mismatches, 0, whole=True)
    return _kmer_kernel(sequences, k, int(mismatches))


def _residues(sequences: Sequence[str]) -> list[str]:
    """Return the sequences in upper case and in the letters of BLOSUM62."""
    bad = invalid_residues(sequences)
    if bad:
        number, letters = bad[0]
        said = f"holds {reprlib.repr(letters)}, which is no amino acid" if letters else "is empty"
        more = f"; {len(bad) - 1} more cannot be read either" if len(bad) > 1 else ""
        raise InputError(f"the sequence at position {number} (counted from 0) {said}; mend or remove it{more}")
    if not len(sequences):
        raise InputError("there are no sequences; give at least one")
    return [text.upper().translate(RELATIVES) for text in sequences]


def _alignment_scores(sequences: Sequence[str], gap_open: int, gap_extend: int, show_progress: bool) -> Array:
    """Return the scores of the best local alignments of different sequences, [N, N]."""
    try:
        import parasail
    except ModuleNotFoundError:
        raise MissingExtraError("parasail", "screening") from None
    count = len(sequences)
    scores = np.zeros((count, count))
    done, total = 0, count * (count + 1) // 2
    with counting("alignments", total, show=show_progress) as tell:
        for i, query in enumerate(sequences):
            profile, wide = parasail.profile_create_16(query, parasail.blosum62), None
            for j in range(i, count):
                # The striped variant is faster, but scores some pairs too low where opening costs as much as extension.
                found = parasail.sw_scan_profile_16(profile, sequences[j], gap_open, gap_extend)
                if found.saturated:
                    wide = wide or parasail.profile_create_32(query, parasail.blosum62)
                    found = parasail.sw_scan_profile_32(wide, sequences[j], gap_open, gap_extend)
                scores[i, j] = scores[j, i] = found.score
            done += count - i
            tell(done)
    return scores


def _kmer_kernel(sequences: Sequence[str], k: int, mismatches: int) -> Array:
    in_range("k", k, 1, LONGEST, whole=True)
    if mismatches >= k:
        raise InputError(f"mismatches is {mismatches} for k-mers of {k} residues; allow fewer than that")
    try:
        from scipy.sparse import csr_matrix
    except ModuleNotFoundError:
        raise MissingExtraError("scipy", "screening") from None
    residues = _residues(sequences)
    found = [_kmers(text, int(k)) for text in residues]
    sizes = [len(kmers) for kmers in found]
    if 0 in sizes:
        number = sizes.index(0)
        raise InputError(
            f"the sequence at position {number} (counted from 0), {reprlib.repr(residues[number])}, has no {k} known "
            "amino acids in a row; take a smaller k or leave it out"
        )
    kmers, column = np.unique(np.concatenate(found), return_inverse=True)
    row = np.repeat(np.arange(len(found)), sizes)
    # What stands at the same place is summed.
    counts = csr_matrix((np.ones(len(row)), (row, column)), shape=(len(found), len(kmers)))
    kernel = np.zeros((len(found), len(found)))
    for source, feature in _features(kmers, int(k), mismatches):
        names, column = np.unique(feature, return_inverse=True)
        near = csr_matrix((np.ones(len(source)), (source, column)), shape=(len(kmers), len(names)))
        part = counts @ near
        # Where every tenth count is there, the dense product is the faster one.
        kernel += (
            part.toarray() @ part.T.toarray() if 10 * part.nnz > np.prod(part.shape) else (part @ part.T).toarray()
        )
    return normalise_kernel(kernel, "counts of k-mers")


def _kmers(residues: str, k: int) -> NDArray[np.int64]:
    """Return the numbers of the k-mers of known amino acids, in base 20, one for each place where one stands."""
    digits = np.array([AMINO_ACIDS.find(letter) for letter in residues], dtype=np.int64)
    if len(digits) < k:
        return digits[:0]
    windows = np.lib.stride_tricks.sliding_window_view(digits, k)
    kmers: NDArray[np.int64] = windows[(windows >= 0).all(axis=1)] @ _powers(k)
    return kmers


def _features(
    kmers: NDArray[np.int64], k: int, mismatches: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int64]]]:
    """Yield pairs of a k-mer's position and a feature it counts for, a first residue of the features at a time."""
    reached = len(kmers) * _neighbour_count(k, mismatches)
    if reached > MOST_NEIGHBOURS:
        raise InputError(
            f"k={k} and mismatches={mismatches} let {len(kmers)} k-mers count for {reached} features in all; take "
            f"smaller ones, at most {MOST_NEIGHBOURS} can be counted"
        )
    rest, first = np.divmod(kmers, 20)
    for residue in range(20):
        same, other = np.flatnonzero(first == residue), np.flatnonzero(first != residue)
        near = [_neighbours(rest[same], k - 1, min(mismatches, k - 1))]
        source = [np.repeat(same, near[0].shape[1])]
        if mismatches:
            near.append(_neighbours(rest[other], k - 1, mismatches - 1))
            source.append(np.repeat(other, near[1].shape[1]))
        yield np.concatenate(source), np.concatenate([found.ravel() for found in near])


def _neighbours(kmers: NDArray[np.int64], k: int, mismatches: int) -> NDArray[np.int64]:
    """Return the numbers of all k-mers that differ in at most so many residues, [K] -> [K, neighbours]."""
    powers = _powers(k)
    digits = kmers[:, None] // powers % 20  # [K, k]
    near = np.empty((len(kmers), _neighbour_count(k, mismatches)), dtype=np.int64)
    changes = (
        (places, shifts)
        for changed in range(mismatches + 1)
        for places in combinations(range(k), changed)
        for shifts in product(range(1, 20), repeat=changed)
    )
    for column, (places, shifts) in enumerate(changes):
        old = digits[:, places]
        new = (old + np.array(shifts, dtype=np.int64)) % 20
        near[:, column] = kmers + (new - old) @ powers[list(places)]
    return near


def _neighbour_count(k: int, mismatches: int) -> int:
    return sum(comb(k, changed) * 19**changed for changed in range(mismatches + 1))


def _powers(k: int) -> NDArray[np.int64]:
    return np.int64(20) ** np.arange(k, dtype=np.int64)
