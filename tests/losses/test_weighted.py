"""Sums of weighted terms."""

from __future__ import annotations

import pytest
import torch

from stillroom.errors import InputError
from stillroom.losses import weighted_sum


def test_the_sum_is_weighted() -> None:
    assert weighted_sum((2.0, torch.tensor(3.0)), (0.5, torch.tensor(4.0))) == 8.0


def test_a_term_of_weight_zero_sends_no_gradient_at_all() -> None:
    used, unused = torch.tensor(1.0, requires_grad=True), torch.tensor(float("inf"), requires_grad=True)
    loss = weighted_sum((1.0, used), (0.0, unused))
    loss.backward()
    assert loss == 1.0
    assert unused.grad is None


def test_all_weights_zero_is_refused() -> None:
    with pytest.raises(InputError, match="all weights"):
        weighted_sum((0.0, torch.tensor(1.0)))
