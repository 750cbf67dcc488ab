"""From affinities to labels."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.screening.data._measurements import label_matrices, labels_of, parse_affinity

RELATION = st.sampled_from(["=", ">", ">=", "<", "<="])
VALUE = st.sampled_from([1.0, 10.0, 100.0, 1000.0, 10_000.0])
MEASUREMENTS = st.lists(st.tuples(st.sampled_from("abc"), RELATION, VALUE), max_size=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", ("=", 5)),
        (" > 1e4 ", (">", 10_000)),
        (">>50", (">", 50)),
        ("<=.5", ("<=", 0.5)),
        ("~7.", ("=", 7)),
        ("-1", ("=", -1)),
        *((text, None) for text in ("", "n.d.", "1,000", "nan", "inf", "1e999", "1_0", ">", "5 nM", "=>5")),
    ],
)
def test_an_affinity_is_a_number_perhaps_with_a_relation(text: str, expected: tuple[str, float] | None) -> None:
    assert parse_affinity(text) == expected


@pytest.mark.parametrize(
    ("relation", "value", "expected"),
    [
        ("=", 1000, True),
        ("=", 1000.1, False),
        (">", 10_000, False),
        (">", 1000, False),  # strictly above
        (">=", 1000, None),  # may be the threshold itself, which interacts
        (">", 999, None),
        ("<", 0.5, True),
        ("<", 1000, True),
        ("<=", 1000, True),
        ("<", 1001, None),
    ],
)
def test_a_bound_counts_only_where_it_decides(relation: str, value: float, expected: bool | None) -> None:
    labels, notes = labels_of([("p", relation, value)], threshold=1000)
    assert labels.get("p") is expected
    assert any("left out: 1 bound" in note for note in notes) == (expected is None)


def test_several_measurements_count_by_their_geometric_median() -> None:
    twice = [("p", "=", 10.0), ("p", "=", 40_000.0)]
    labels, notes = labels_of(twice, threshold=1000)
    assert labels == {"p": True}  # sqrt(10 * 40000) = 632; the mean would be 20005
    assert notes[1:] == [
        "1 pair measured several times; the median counts",
        "1 pair of these measured on both sides of the threshold",
    ]
    assert labels_of([*twice, ("p", ">", 10_000.0)], threshold=1000)[0] == {"p": False}


@given(MEASUREMENTS, VALUE)
@settings(max_examples=200)
def test_what_rises_with_the_affinity_is_labelled_like_its_mirror_image(
    measurements: list[tuple[str, str, float]], threshold: float
) -> None:
    mirror = {"=": "=", ">": "<", "<": ">", ">=": "<=", "<=": ">="}
    logarithms = [(pair, mirror[relation], -math.log10(value)) for pair, relation, value in measurements]
    rising, _ = labels_of(logarithms, threshold=-math.log10(threshold), at_least=True)
    assert rising == labels_of(measurements, threshold=threshold)[0]


@given(MEASUREMENTS, VALUE, st.randoms())
def test_the_order_of_measurements_does_not_matter(
    measurements: list[tuple[str, str, float]], threshold: float, random: Random
) -> None:
    shuffled = list(measurements)
    random.shuffle(shuffled)
    assert labels_of(shuffled, threshold=threshold)[0] == labels_of(measurements, threshold=threshold)[0]


def test_too_many_pairs_for_a_matrix_are_refused() -> None:
    with pytest.raises(InputError, match=r"100,000,000 pairs; at most 50,000,000 fit"):
        label_matrices({(0, 0): True}, (10_000, 10_000), "file", by_threshold=True)
