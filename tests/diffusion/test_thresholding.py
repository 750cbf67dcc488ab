"""Dynamic thresholding against torch's own quantile."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.diffusion.thresholding import dynamic_threshold
from stillroom.errors import InputError


@given(count=st.integers(1, 50), quantile=st.floats(0, 1), floor=st.floats(0.1, 2), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_it_clamps_to_the_quantile_of_each_sample(count: int, quantile: float, floor: float, seed: int) -> None:
    x = torch.randn(3, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    limit = x.abs().quantile(quantile, dim=1, keepdim=True).clamp(min=floor)
    torch.testing.assert_close(dynamic_threshold(x, quantile=quantile, floor=floor), x.clamp(-limit, limit) / limit)


def test_samples_within_the_floor_are_left_alone() -> None:
    x = torch.linspace(-1, 1, 24).view(2, 3, 2, 2)
    assert torch.equal(dynamic_threshold(x), x)


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="quantile must be from 0 to 1"):
        dynamic_threshold(torch.zeros(1, 2), quantile=1.5)
