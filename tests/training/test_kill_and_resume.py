"""A training killed with SIGKILL and resumed ends exactly as the one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
KILLED = ["first", "epoch-end", "epoch-start", "after-checkpoint", "mid", "thrice", "in-evaluation"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not hasattr(os, "fork"):
        pytest.skip("the driver forks")
    root = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(HERE / "kill_driver.py"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", KILLED)
def test_the_killed_runs_were_killed_and_then_finished(runs: Path, name: str) -> None:
    signals = json.loads((runs / "signals.json").read_text())[name]
    assert set(signals[:-1]) == {signal.SIGKILL}
    assert signals[-1] == 0


@pytest.mark.parametrize("name", KILLED)
def test_weights_and_statistics_are_bit_identical(runs: Path, name: str) -> None:
    expected = torch.load(runs / "never" / "final.pt", weights_only=True)
    found = torch.load(runs / name / "final.pt", weights_only=True)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key


@pytest.mark.parametrize("name", KILLED)
def test_metrics_of_every_epoch_are_identical(runs: Path, name: str) -> None:
    expected = json.loads((runs / "never" / "history.json").read_text())
    assert len(expected) == 3
    assert json.loads((runs / name / "history.json").read_text()) == expected


@pytest.mark.parametrize("name", KILLED)
def test_the_metrics_file_holds_every_epoch_once(runs: Path, name: str) -> None:
    lines = (runs / name / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
