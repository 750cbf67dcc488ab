"""Smith-Waterman scores, spectrum and mismatch kernels."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import product
from math import sqrt
from typing import Any

import numpy as np
import parasail
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError, MissingExtraError
from stillroom.screening.kernels import genomic
from stillroom.screening.kernels.algebra import smallest_eigenvalue
from stillroom.screening.kernels.genomic import (
    invalid_residues,
    mismatch_kernel,
    smith_waterman_kernel,
    spectrum_kernel,
)

ALL_KERNELS = [smith_waterman_kernel, spectrum_kernel, mismatch_kernel]
# Human insulin, its B and A chains, and ubiquitin.
PROTEINS = (
    "MALWMRLLPLLALLALWGPDPAAAFVNQHLCGSHLVEALYLVCGERGFFYTPKTRREAEDLQVGQVELGGGPGAGSLQPLALEGSLQKRGIVEQCCTSICSLYQLENYCN",
    "FVNQHLCGSHLVEALYLVCGERGFFYTPKT",
    "GIVEQCCTSICSLYQLENYCN",
    "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG",
)


def local_score(a: str, b: str, gap_open: int, gap_extend: int) -> int:
    """Gotoh's three tables, cell by cell."""
    matrix, order = parasail.blosum62.matrix, "ARNDCQEGHILKMFPSTWYVBZX*"
    never = -(10**9)
    best = 0
    ends = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]  # both residues aligned, or nothing yet
    down = [[never] * (len(b) + 1) for _ in range(len(a) + 1)]
    right = [[never] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            down[i][j] = max(ends[i - 1][j] - gap_open, down[i - 1][j] - gap_extend)
            right[i][j] = max(ends[i][j - 1] - gap_open, right[i][j - 1] - gap_extend)
            pair = int(matrix[order.index(a[i - 1]), order.index(b[j - 1])])
            ends[i][j] = max(0, ends[i - 1][j - 1] + pair, down[i][j], right[i][j])
            best = max(best, ends[i][j])
    return best


texts = st.text(genomic.AMINO_ACIDS + "BZ", min_size=1, max_size=14)


@settings(deadline=None)
@example(["ABBZ", "AE"], 1, 1)  # parasail's striped variant scores 5 where 6 is right
@given(st.lists(texts, min_size=1, max_size=4), st.integers(1, 12), st.integers(1, 12))
def test_smith_waterman_agrees_with_a_dynamic_programme(sequences: list[str], one: int, other: int) -> None:
    gap_open, gap_extend = max(one, other), min(one, other)
    scores = [[local_score(a, b, gap_open, gap_extend) for b in sequences] for a in sequences]
    expected = [
        [scores[i][j] / sqrt(scores[i][i] * scores[j][j]) for j in range(len(sequences))] for i in range(len(sequences))
    ]
    kernel = smith_waterman_kernel(sequences, gap_open=gap_open, gap_extend=gap_extend)
    np.testing.assert_allclose(kernel, expected, rtol=1e-14)


def test_a_gap_of_two_residues_costs_opening_and_one_extension() -> None:
    ends = "WWWWW"  # 11 each
    kernel = smith_waterman_kernel([ends + ends, ends + "AA" + ends], gap_open=10, gap_extend=3)
    assert kernel[0, 1] == pytest.approx((110 - 10 - 3) / sqrt(110 * 118))


def test_scores_beyond_sixteen_bits_are_exact() -> None:
    long, short = "W" * 6000, "W" * 1500
    kernel = smith_waterman_kernel([long, short])
    assert kernel[0, 1] == pytest.approx(16_500 / sqrt(66_000 * 16_500), rel=1e-14)


def test_equal_sequences_are_aligned_once_and_the_order_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    aligned: list[tuple[str, ...]] = []
    real = genomic._alignment_scores
    monkeypatch.setattr(genomic, "_alignment_scores", lambda s, *rest: aligned.append(tuple(s)) or real(s, *rest))
    kernel = smith_waterman_kernel([*PROTEINS, PROTEINS[0].lower()])
    assert aligned == [PROTEINS]
    assert (kernel[0] == kernel[4]).all()
    swapped = smith_waterman_kernel(PROTEINS[::-1])
    np.testing.assert_allclose(swapped[::-1, ::-1], kernel[:4, :4], rtol=1e-14)


@pytest.mark.parametrize("kernel_of", ALL_KERNELS)
def test_kernels_are_symmetric_with_ones_on_the_diagonal(kernel_of: Any) -> None:
    kernel = kernel_of(PROTEINS)
    assert (kernel == kernel.T).all()
    np.testing.assert_allclose(np.diagonal(kernel), 1, rtol=1e-14)
    assert (kernel >= 0).all()
    assert kernel[0, 1] > kernel[0, 3]  # a chain of insulin is nearer to it than ubiquitin


@pytest.mark.parametrize("kernel_of", ALL_KERNELS)
def test_case_and_rare_residues_are_read_as_documented(kernel_of: Any) -> None:
    np.testing.assert_allclose(kernel_of(["MKCLKCLMKV", "mkUJOcjmkv", "MKCLKCLMKV"]), 1, rtol=1e-14)


def spectrum(text: str, k: int) -> Counter[str]:
    words = (text[i : i + k] for i in range(len(text) - k + 1))
    return Counter(word for word in words if set(word) <= set(genomic.AMINO_ACIDS))


def cosine(features: list[np.ndarray]) -> np.ndarray:
    matrix = np.array(features, dtype=float)
    norms = np.sqrt((matrix**2).sum(axis=1))
    return matrix @ matrix.T / np.outer(norms, norms)


few = st.lists(st.text("ACWXB", min_size=3, max_size=12).map(lambda text: "ACW" + text), min_size=1, max_size=5)


@settings(deadline=None)
@given(few, st.integers(1, 3))
def test_the_spectrum_kernel_agrees_with_counting_words(sequences: list[str], k: int) -> None:
    counts = [spectrum(text, k) for text in sequences]
    features = ["".join(word) for word in product("ACW", repeat=k)]
    expected = cosine([np.array([count[word] for word in features]) for count in counts])
    np.testing.assert_allclose(spectrum_kernel(sequences, k=k), expected, rtol=1e-12)


@pytest.mark.parametrize("place", range(14))
def test_the_longest_kmers_are_told_apart(place: int) -> None:
    tyrosines = "Y" * 14  # the largest number
    changed = tyrosines[:place] + "W" + tyrosines[place + 1 :]
    assert spectrum_kernel([tyrosines, changed], k=14).tolist() == [[1, 0], [0, 1]]


@settings(deadline=None, max_examples=25)
@given(few, st.sampled_from([(2, 1), (3, 1), (3, 2), (2, 0)]))
def test_the_mismatch_kernel_agrees_with_comparing_all_words(sequences: list[str], options: tuple[int, int]) -> None:
    k, mismatches = options
    every = np.array(list(product(genomic.AMINO_ACIDS, repeat=k)))
    features = []
    for text in sequences:
        feature = np.zeros(len(every))
        for word, count in spectrum(text, k).items():
            feature += count * ((every != np.array(list(word))).sum(axis=1) <= mismatches)
        features.append(feature)
    kernel = mismatch_kernel(sequences, k=k, mismatches=mismatches)
    np.testing.assert_allclose(kernel, cosine(features), rtol=1e-12)


def test_the_mismatch_kernel_without_mismatches_is_the_spectrum_kernel() -> None:
    assert (mismatch_kernel(PROTEINS, k=4, mismatches=0) == spectrum_kernel(PROTEINS, k=4)).all()


@pytest.mark.parametrize("kernel_of", [spectrum_kernel, mismatch_kernel])
def test_kernels_of_kmers_have_no_negative_eigenvalue(kernel_of: Any) -> None:
    generator = np.random.default_rng(0)
    sequences = ["".join(generator.choice(list("ACDW"), 30)) for _ in range(40)]
    assert smallest_eigenvalue(kernel_of(sequences, k=2)) > -1e-10


@pytest.mark.parametrize(
    ("text", "letters"), [("", ""), ("M-K1-", "-1"), ("MK V\n", " \n"), ("ßMı", "ßı"), (None, "None"), (3.5, "3.5")]
)
def test_what_is_no_residue_is_found_with_its_position(text: Any, letters: str) -> None:
    assert invalid_residues(["MKV", text, "acdbzxuoj*"]) == [(1, letters)]


@pytest.mark.parametrize("kernel_of", ALL_KERNELS)
def test_the_error_names_the_first_bad_sequence_and_how_many_more(kernel_of: Any) -> None:
    with pytest.raises(InputError, match=r"position 1 \(counted from 0\) holds '-1', which is no amino acid.*; 1 more"):
        kernel_of(["MKV", "M-K1", ""])
    with pytest.raises(InputError, match=r"position 1 \(counted from 0\) is empty; mend or remove it$"):
        kernel_of(["MKV", ""])
    with pytest.raises(InputError, match="there are no sequences"):
        kernel_of([])
    with pytest.raises(InputError, match="give a list"):
        kernel_of("MKV")


def test_a_sequence_that_aligns_with_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"position 1 .* all X"):
        smith_waterman_kernel(["MKV", "xxx"])


@pytest.mark.parametrize("kernel_of", [spectrum_kernel, mismatch_kernel])
@pytest.mark.parametrize("text", ["MK", "MKXMKX*KV", "XXXXX"])
def test_a_sequence_without_a_kmer_is_refused_with_its_position(kernel_of: Any, text: str) -> None:
    with pytest.raises(InputError, match=r"position 2 \(counted from 0\).* has no 3 known"):
        kernel_of(["MKV", "MKVL", text], k=3)


@pytest.mark.parametrize(
    ("kernel_of", "options", "message"),
    [
        (smith_waterman_kernel, {"gap_extend": 0}, "gap_extend"),
        (smith_waterman_kernel, {"gap_open": 1, "gap_extend": 2}, "gap_open is 1; .* at least 2"),
        (smith_waterman_kernel, {"gap_open": 2.5}, "gap_open"),
        (spectrum_kernel, {"k": 0}, "k is 0"),
        (spectrum_kernel, {"k": 15}, "k is 15"),
        (mismatch_kernel, {"mismatches": -1}, "mismatches is -1"),
        (mismatch_kernel, {"k": 2, "mismatches": 2}, "fewer than that"),
        (mismatch_kernel, {"k": 14, "mismatches": 13}, "take smaller ones"),
    ],
)
def test_impossible_options_are_refused(kernel_of: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kernel_of(PROTEINS, **options)


def test_progress_is_told_on_standard_error_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    smith_waterman_kernel(PROTEINS, show_progress=True)
    assert "10/10" in capsys.readouterr().err
    smith_waterman_kernel(PROTEINS)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kernel_of", "package", "module"),
    [
        (smith_waterman_kernel, "parasail", "parasail"),
        (spectrum_kernel, "scipy", "scipy.sparse"),
        (mismatch_kernel, "scipy", "scipy.sparse"),
    ],
)
def test_without_its_package_the_extra_is_named(
    kernel_of: Any, package: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is not installed.*stillroom\[screening\]"):
        kernel_of(PROTEINS)


def test_a_column_of_a_table_is_taken_by_position() -> None:
    import pandas

    column = pandas.Series(["MKV", "", "MX", "XKV"], index=[7, 5, 3, 1])
    assert invalid_residues(column) == [(1, "")]
    with pytest.raises(InputError, match="position 1 "):
        spectrum_kernel(column[[7, 3]], k=2)
