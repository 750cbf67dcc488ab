"""Atomic writing, with real limits of the operating system."""

from __future__ import annotations

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillroom.errors import OutputError
from stillroom.files import write_bytes_atomic, write_json_atomic, write_text_atomic


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text_atomic(path, "old")
    write_json_atomic(path, {"accuracy": 97.5, "loss": float("inf")})
    assert json.loads(path.read_text()) == {"accuracy": 97.5, "loss": None}
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_does_not_fit_keeps_the_old_file_and_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_bytes_atomic(path, b"old")
    with files_limited_to(10_000), pytest.raises(OutputError, match=r"cannot write .*model\.safetensors") as caught:
        write_bytes_atomic(path, bytes(20_000))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        write_bytes_atomic(tmp_path / "absent" / "file", b"")
