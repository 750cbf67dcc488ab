"""Checkpoints: what damages them, what does not fit them, what they keep."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.errors import InputError
from stillroom.training import checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def finished(toy: ModuleType, tmp_path: Path) -> Path:
    toy.train(toy.ToyTask(), tmp_path)
    return tmp_path


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def test_the_last_two_are_kept(finished: Path) -> None:
    names = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert names == ["epoch-00003-step-0000000.pt", "epoch-00004-step-0000000.pt"]


def test_resuming_a_finished_run_returns_its_history_and_weights_without_a_step(
    toy: ModuleType, finished: Path
) -> None:
    expected = toy.ToyTask()
    history = toy.train(expected, None)
    task = toy.ToyTask()
    assert toy.without_times(toy.train(task, finished, resume=True)) == toy.without_times(history)
    assert task.steps == 0
    for key, value in expected.state_dict().items():
        assert torch.equal(value, task.state_dict()[key])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_one_bit(path: Path) -> None:
    """Damage a weight: the file still opens, only its checksum tells."""
    data = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["task"]["net.1.weight"].numpy().tobytes()
    data[data.index(weight)] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [truncate, empty, flip_one_bit])
def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(toy: ModuleType, finished: Path, damage: Any) -> None:
    expected = torch.load(newest(finished), weights_only=True)["task"]
    damage(newest(finished))
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    message = r"epoch-00004-step-0000000.pt is damaged; remove it and resuming continues from epoch-00003"
    with pytest.raises(InputError, match=message) as caught:
        toy.train(toy.ToyTask(), finished, resume=True)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before

    newest(finished).unlink()
    task = toy.ToyTask()
    toy.train(task, finished, resume=True)
    assert task.steps == 8
    assert all(torch.equal(value, task.state_dict()[key]) for key, value in expected.items())


def test_when_no_checkpoint_is_intact_the_line_says_so(toy: ModuleType, finished: Path) -> None:
    for path in (finished / "checkpoints").iterdir():
        truncate(path)
    with pytest.raises(InputError, match="starts from the beginning"):
        toy.train(toy.ToyTask(), finished, resume=True)


def test_another_recipe_seed_or_data_is_named(toy: ModuleType, finished: Path) -> None:
    recipe = replace(toy.RECIPE, lr=0.01)
    with pytest.raises(InputError, match=r"recipe\.lr was 0\.05, is now 0\.01"):
        toy.train(toy.ToyTask(), finished, resume=True, recipe=recipe)
    with pytest.raises(InputError, match="seed was 7, is now 8"):
        toy.train(toy.ToyTask(), finished, resume=True, seed=8)
    with pytest.raises(InputError, match="steps_per_epoch was 8, is now 4"):
        toy.train(toy.ToyTask(), finished, resume=True, loader=toy.ToyLoader(samples=32))


def test_starting_anew_over_checkpoints_is_refused(toy: ModuleType, finished: Path) -> None:
    with pytest.raises(InputError, match="holds checkpoints already"):
        toy.train(toy.ToyTask(), finished)


def test_resuming_without_a_checkpoint_starts_and_drops_stale_metrics(toy: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    toy.train(toy.ToyTask(), tmp_path, resume=True)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_what_a_killed_write_left_behind_does_not_disturb(toy: ModuleType, tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / ".epoch-00009-step-0000000.pt.1.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half of a checkpoint")
    task = toy.ToyTask()
    toy.train(task, tmp_path, resume=True)
    assert task.steps == 24
    assert not left.exists()


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"identity": {}, "task": Path("anything but tensors")}, tmp_path / "epoch-00001-step-0000001.pt")
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load_newest(tmp_path, {})


def test_every_random_generator_continues_where_it_stood() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(()).item()]

    draw()
    states = checkpoint.random_states(CPU)
    first = draw()
    draw()
    checkpoint.restore_random_states(states, CPU)
    assert draw() == first
