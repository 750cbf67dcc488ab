"""The made-up set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import InputError
from stillroom.screening.data.generated import MOST_DRUGS, draw_interactions
from stillroom.screening.interactions import Interactions
from stillroom.screening.kernels.genomic import invalid_residues


def drawn(drugs: int = 60, targets: int = 30, seed: int = 0) -> Interactions:
    return draw_interactions(drugs=drugs, targets=targets, generator=np.random.default_rng(seed))


def test_every_structure_it_could_draw_is_a_distinct_molecule() -> None:
    from stillroom.screening.kernels import chemical

    data = drawn(drugs=MOST_DRUGS, targets=6)
    assert len(set(chemical.canonical_smiles(data.smiles))) == MOST_DRUGS


@given(drugs=st.integers(12, 90), targets=st.integers(6, 40), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_whatever_the_size_there_are_interactions_and_new_drugs_and_targets(
    drugs: int, targets: int, seed: int
) -> None:
    data = drawn(drugs, targets, seed)
    assert data.shape == (drugs, targets)
    assert data.labels.any()
    assert len(data.new_drugs) >= 1
    assert len(data.new_targets) >= 1
    assert len(set(data.smiles)) == drugs
    assert not invalid_residues(data.sequences)


def test_the_seed_decides() -> None:
    first, again, other = drawn(seed=1), drawn(seed=1), drawn(seed=2)
    assert np.array_equal(first.labels, again.labels)
    assert (first.smiles, first.sequences) == (again.smiles, again.sequences)
    assert (first.smiles, first.sequences) != (other.smiles, other.sequences)


def test_matching_families_interact_far_more_often_than_others() -> None:
    data = drawn(drugs=300, targets=60)
    matching = np.arange(300)[:, None] % 6 == np.arange(60) % 6
    assert data.labels[matching].mean() > 0.4
    assert data.labels[~matching].mean() < 0.03


@pytest.mark.parametrize(("drugs", "targets"), [(11, 30), (MOST_DRUGS + 1, 30), (60, 5)])
def test_sizes_no_set_could_have_are_refused(drugs: int, targets: int) -> None:
    with pytest.raises(InputError, match="must be a whole number"):
        drawn(drugs, targets)
