"""The memory bank on disk: what is written is read, it stays bounded, and nothing foreign or damaged is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillroom.distillation.data_free.bank import Bank, Round
from stillroom.errors import InputError


def made(number: int, rows: bool = False) -> Round:
    images = torch.full((2, 1, 4, 4), number, dtype=torch.uint8)
    return Round(images, torch.tensor([0, 1]), {"bn": float(number)}, 1.5 * number, torch.ones(2, 3) if rows else None)


def bank(folder: Path, **options: Any) -> Bank:
    return Bank(folder, **{"limit": 3, "identity": {"seed": 0}, "resume": True, **options})


def filled(folder: Path, count: int, **options: Any) -> Bank:
    here = bank(folder, **options)
    for number in range(1, count + 1):
        here.add(number, made(number, rows=True), {"weight": torch.full((2,), float(number))})
    return here


def test_another_process_finds_what_was_written(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    found = bank(tmp_path)
    assert found.newest == 2
    for number in (1, 2):
        expected = made(number, rows=True)
        assert torch.equal(found[number].images, expected.images)
        assert torch.equal(found[number].target, expected.target)
        assert found[number].parts == expected.parts
        assert found[number].seconds == expected.seconds
        assert torch.equal(found.state(number)["weight"], torch.full((2,), float(number)))
    assert found.images(2).pixels[:, 0, 0, 0].tolist() == [1, 1, 2, 2]
    assert torch.equal(torch.cat(list(found.rows(2))), torch.ones(4, 3))


def test_the_oldest_rounds_leave_the_window_and_the_disk(tmp_path: Path) -> None:
    here = filled(tmp_path, 3)
    full = here.num_bytes
    for number in range(4, 12):
        here.add(number, made(number, rows=True), {"weight": torch.zeros(2)})
        assert here.images(number).pixels[::2, 0, 0, 0].tolist() == [number - 2, number - 1, number]
        assert here.num_bytes <= 1.5 * full
    # One more than the limit, for a resumption from the checkpoint before the last.
    assert sorted(file.name for file in tmp_path.glob("round-*")) == [
        f"round-{number:06d}.safetensors" for number in (8, 9, 10, 11)
    ]
    assert len(list(tmp_path.glob("state-*"))) == 3
    assert here.images(10).pixels[::2, 0, 0, 0].tolist() == [8, 9, 10]


def test_a_killed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / ".round-000001.safetensors.7.tmp").write_bytes(b"half")
    here = bank(tmp_path)
    assert 1 not in here
    here.add(1, made(1), {})
    assert [file.name for file in tmp_path.iterdir()] == ["round-000001.safetensors"]


def test_a_bank_without_rounds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bank_rounds is 0: a bank without images teaches nothing"):
        bank(tmp_path, limit=0)
    with pytest.raises(InputError, match="holds no images"):
        bank(tmp_path).images(0)


def test_a_fresh_run_does_not_take_up_old_images(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    with pytest.raises(InputError, match="holds images already; resume or name another run"):
        bank(tmp_path, resume=False)


def test_images_of_another_training_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    with pytest.raises(InputError, match="belongs to another training: seed was 0, is now 1"):
        bank(tmp_path, identity={"seed": 1})[1]


def test_a_missing_or_damaged_round_is_said(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    file = tmp_path / "round-000001.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"round-000001.safetensors is damaged"):
        bank(tmp_path).images(2)
    file.unlink()
    with pytest.raises(InputError, match=r"round-000001.safetensors is missing"):
        bank(tmp_path).images(2)
