"""Parts of a long measurement: each is written down once, here or in processes of their own."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from stillroom.errors import FailureError, InputError, OutputError
from stillroom.training.jobs import kept, run_jobs


def test_a_part_is_measured_once_and_read_afterwards(tmp_path: Path) -> None:
    asked = []

    def measure() -> dict[str, Any]:
        asked.append(1)
        return {"accuracy": 71.5}

    file = tmp_path / "cells" / "kd" / "result.json"
    assert kept(file, measure) == {"accuracy": 71.5} == kept(file, measure)
    assert len(asked) == 1
    assert json.loads(file.read_text()) == {"accuracy": 71.5}


def test_a_part_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        kept(tmp_path / "result.json", lambda: {"accuracy": 1 / 0})
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"accuracy": ')
    with pytest.raises(InputError, match=r"result.json is damaged; remove it and resume$"):
        kept(tmp_path / "result.json", dict)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cells").write_text("in the way")
    with pytest.raises(OutputError, match="cells"):
        kept(tmp_path / "cells" / "kd" / "result.json", dict)


def test_one_job_works_here_in_order_and_only_as_far_as_it_is_asked() -> None:
    done: list[int] = []

    def work(item: int) -> int:
        done.append(item)
        return item**2

    results = run_jobs(work, [3, 1, 2], 1)
    assert next(results) == (3, 9)
    assert done == [3]
    assert list(results) == [(1, 1), (2, 4)]
    assert list(run_jobs(work, [], 1)) == []


def test_several_jobs_yield_every_item_with_its_result() -> None:
    assert dict(run_jobs(math.isqrt, [16, 9, 4], 2)) == {16: 4, 9: 3, 4: 2}


def test_a_process_that_dies_is_a_failure_in_one_line() -> None:
    with pytest.raises(FailureError, match=r"a training process died.*resume the bench with fewer jobs"):
        list(run_jobs(os._exit, [7], 2))


def test_an_error_of_a_part_is_the_callers() -> None:
    with pytest.raises(ValueError, match="isqrt"):
        list(run_jobs(math.isqrt, [4, -1], 2))
