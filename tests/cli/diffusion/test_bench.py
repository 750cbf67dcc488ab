"""``stillroom diffusion bench`` on small real models: the table, resuming, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.commands import Ended
from stillroom.diffusion.sampler import Sampler
from stillroom.diffusion.solvers import make_solver

SMALL = ("--model", "optimal:digits", "--images", "200", "--count", "6", "--reference_steps", "60", "--quiet")
Here = Callable[..., Ended]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Sampler(make_solver("ipndm", order=2), (80.0, 10.0, 3.0, 1.0, 0.002)).save(tmp_path / "mine.json")
    return tmp_path / "mine.json"


def test_a_bench_compares_solvers_schedules_and_stored_samplers(here: Here, tmp_path: Path, file: Path) -> None:
    out = tmp_path / "bench"
    options = ("--solvers", "euler,heun,dpmpp", "--schedules", "polynomial,gits", "--files", file, "--nfe", "4,6")
    ended = here("diffusion", "bench", *SMALL, *options, "--out", out, "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert result == json.loads((out / "result.json").read_text())
    found = {(record["entry"], record["nfe"]): record for record in result["records"]}
    assert ("mine (file)", 4) in found
    assert ("mine (file)", 6) not in found
    assert ("heun · polynomial", 4) in found
    assert len({entry for entry, _ in found}) == 7
    for (_, nfe), record in found.items():
        assert record["rmse"] > 0
        assert len(record["sigmas"]) - 1 == nfe / (2 if record["solver"] == "heun" else 1)
    for nfe in (4, 6):
        rmses = [record["rmse"] for record in result["records"] if record["nfe"] == nfe]
        assert rmses == sorted(rmses)
        assert result["best"][str(nfe)]["rmse"] == rmses[0]
    html = (out / "report.html").read_text()
    assert "mine (file)" in html
    assert "<svg" in html


def test_a_resumed_bench_keeps_what_was_measured_and_adds_what_is_new(here: Here, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    first = ("--solvers", "euler", "--schedules", "polynomial", "--nfe", "4", "--out", out)
    assert here("diffusion", "bench", *SMALL, *first).code == 0
    cells = (out / "cells.jsonl").read_text()
    marked = cells.replace('"afs": false', '"afs": "kept"')  # only in the file that was there
    (out / "cells.jsonl").write_text(marked)
    more = ("--solvers", "euler,ipndm", "--schedules", "polynomial", "--nfe", "4", "--out", out, "--resume")
    assert here("diffusion", "bench", *SMALL, *more).code == 0
    lines = (out / "cells.jsonl").read_text().splitlines()
    assert lines[0] == marked.strip()
    assert len(lines) == 2


def test_the_distance_to_real_images_is_measured_in_a_classifiers_features(
    here: Here, tmp_path: Path, finished: tuple[Path, Ended]
) -> None:
    options = ("--solvers", "euler,dpmpp", "--schedules", "polynomial", "--nfe", "6", "--count", "20")
    distance = ("--classifier", finished[0], "--data", "digits", "--out", tmp_path / "bench", "--json")
    ended = here("diffusion", "bench", *SMALL, *options, *distance)
    assert ended.code == 0, ended.err
    assert all(record["frechet"] > 0 for record in json.loads(ended.out)["records"])
    assert "Distance of distributions" in (tmp_path / "bench" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--solvers", "eular"), "unknown solver 'eular'; did you mean 'euler'?"),
        (("--schedules", "karas"), "unknown schedule 'karas'"),
        (("--nfe", "0"), "nfe is 0; it must be at least 1"),
        (("--count", "0"), "count is 0; it must be at least 1"),
        (("--classifier", "nowhere"), "needs both: data and a feature network"),
        (("--fid", "--classifier", "x", "--data", "digits"), "two feature networks"),
        (("--files", "nothing.json"), "cannot read the schedule nothing.json"),
        (("--solvers", "heun", "--nfe", "5", "--schedules", "polynomial"), "none of the solvers has a step count"),
    ],
)
def test_bad_input_is_one_line(here: Here, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    ended = here("diffusion", "bench", *SMALL, *options, "--out", tmp_path / "bench")
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "bench").exists()
