"""The Gaussian interaction profile kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stillroom.errors import InputError
from stillroom.screening.kernels.algebra import smallest_eigenvalue
from stillroom.screening.kernels.gip import gip_kernel

profiles_of = st.tuples(st.integers(1, 8), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0]))
)
profiles_with_ones = profiles_of.filter(lambda profiles: profiles.any())


@settings(deadline=None)
@given(profiles_with_ones, st.floats(0.1, 5))
def test_the_kernel_is_the_formula_entry_by_entry(profiles: np.ndarray, gamma: float) -> None:
    width = gamma * len(profiles) / (profiles**2).sum()
    expected = [[np.exp(-width * ((a - b) ** 2).sum()) for b in profiles] for a in profiles]
    np.testing.assert_allclose(gip_kernel(profiles, gamma=gamma), expected, rtol=1e-12)


@settings(deadline=None)
@given(profiles_with_ones)
def test_equal_profiles_are_exactly_one_and_the_kernel_is_definite(profiles: np.ndarray) -> None:
    kernel = gip_kernel(profiles)
    same = (profiles[:, None] == profiles).all(axis=2)
    assert (kernel[same] == 1).all()
    assert (kernel[~same] < 1).all()
    assert (kernel == kernel.T).all()
    assert smallest_eigenvalue(kernel) > -1e-10


@settings(deadline=None)
@given(profiles_with_ones, st.randoms(use_true_random=False))
def test_the_order_of_drugs_and_of_targets_does_not_matter(profiles: np.ndarray, random: object) -> None:
    rows, columns = list(range(profiles.shape[0])), list(range(profiles.shape[1]))
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(columns)  # type: ignore[attr-defined]
    kernel = gip_kernel(profiles)
    assert (gip_kernel(profiles[rows]) == kernel[np.ix_(rows, rows)]).all()
    assert (gip_kernel(profiles[:, columns]) == kernel).all()


def test_empty_profiles_are_refused() -> None:
    with pytest.raises(InputError, match="profiles are empty"):
        gip_kernel(np.zeros((3, 2)))
