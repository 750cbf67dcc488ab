"""A solver with numbers of its own goes through the same plan as every other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.sampling import sample
from stillroom.diffusion.solvers import DPMpp, make_solver
from stillroom.diffusion.solvers.fitted import Fitted
from stillroom.errors import InputError


def test_one_step_rules_whose_numbers_do_not_sum_to_one_are_honoured() -> None:
    solver = Fitted(((0.5, 0.4),))
    end = sample(lambda x, sigma, condition: torch.full_like(x, 2.0), torch.ones(1, 1), (4.0, 1.0), solver)
    torch.testing.assert_close(end, torch.full((1, 1), 0.5 * 4 + 0.4 * 2))


def test_the_numbers_of_another_solver_give_its_samples(tmp_path: Path) -> None:
    levels = (80.0, 10.0, 3.0, 1.0, 0.1)
    rows = tuple((call.update.state, *call.update.weights) for call in DPMpp(2).plan(levels).calls)
    noise = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = Sampler(Fitted(rows), levels)
    found.save(tmp_path / "fitted.json")
    ends = [
        sampler(lambda x, sigma, condition: torch.tanh(x), noise)
        for sampler in (Sampler(DPMpp(2), levels), found, Sampler.load(tmp_path / "fitted.json"))
    ]
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(ends[2], ends[1])


def test_a_fitted_solver_without_numbers_is_no_solver() -> None:
    with pytest.raises(InputError, match="unknown solver 'fitted'"):
        make_solver("fitted")
