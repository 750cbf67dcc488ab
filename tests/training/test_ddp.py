"""Two real CPU processes under torchrun train one model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
Results = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("ddp")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, str(HERE / "ddp_driver.py"), str(root)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
    )
    # What went wrong stands before the launcher's own trace.
    assert done.returncode == 0, done.stderr.partition("torch/distributed/launcher")[0][-6000:]
    return [json.loads((root / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", ["linear", "noisy", "resumed"])
def test_both_processes_end_with_the_same_weights_statistics_and_metrics(ranks: Results, name: str) -> None:
    first, second = ranks
    assert first[name]["weights"]
    assert first[name] == second[name]


def test_two_processes_with_half_batches_equal_one_with_whole_batches(ranks: Results, toy: ModuleType) -> None:
    task = toy.ToyTask(noisy=False)
    history = toy.train(task, None)
    for key, value in task.state_dict().items():
        torch.testing.assert_close(torch.tensor(ranks[0]["linear"]["weights"][key]), value, rtol=1e-5, atol=1e-6)
    for epoch, expected in zip(ranks[0]["linear"]["history"], toy.without_times(history), strict=True):
        assert epoch == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_training_of_two_processes_resumes_exactly(ranks: Results) -> None:
    for rank in ranks:
        assert rank["resumed"] == rank["noisy"]
