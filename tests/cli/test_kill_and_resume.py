"""A command that is killed, interrupted or stopped by a full disk loses nothing, and ``--resume`` ends alike."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

import pytest

from cli.commands import TINY, Commands, Ended, contents, history, measured, weights

STEPS = 12  # of teacher, student alone and distilled student together
PARTS = ("teacher", "alone", ".")


def same_run(run: Path, expected: Path) -> None:
    assert measured(run) == measured(expected)
    assert weights(run) == weights(expected)
    assert [history(run / part) for part in PARTS] == [history(expected / part) for part in PARTS]


@pytest.mark.parametrize("draw", range(3))
def test_a_killed_distillation_resumes_to_the_same_result(
    commands: Commands, finished: tuple[Path, Ended], tmp_path: Path, draw: int
) -> None:
    step = random.SystemRandom().randint(1 + 4 * draw, 4 + 4 * draw)  # one in each of the three trainings
    print(f"killed after step {step}")
    out = tmp_path / "killed"
    assert commands.run("distill", *TINY, "--out", out, step=step).code == -signal.SIGKILL
    assert not (out / "result.json").exists()
    resumed = commands.run("distill", *TINY, "--out", out, "--resume", "--quiet")
    assert (resumed.code, resumed.err) == (0, "")
    same_run(out, finished[0])


def test_an_interrupted_distillation_says_so_in_one_line_and_resumes(
    commands: Commands, finished: tuple[Path, Ended], tmp_path: Path
) -> None:
    interrupted = commands.run("distill", *TINY, "--out", tmp_path / "run", "--quiet", step=6, signal="SIGINT")
    assert interrupted.code == 130
    assert "interrupted" in interrupted.complaint
    config = tmp_path / "run" / "config.yaml"
    assert commands.run("distill", "--config", config, "--resume", "--quiet").code == 0
    same_run(tmp_path / "run", finished[0])


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_bench_leaves_no_process_and_resumes_to_the_same_result(
    commands: Commands, bench: Path, tmp_path: Path, jobs: int
) -> None:
    out = tmp_path / "bench"
    options = ("--config", bench / "config.yaml", "--out", out, "--quiet", "--jobs", jobs)
    step = random.SystemRandom().randint(3, 10) if jobs == 1 else 0  # the teacher's two steps come first
    print(f"killed after step {step}")
    assert commands.run("bench", *options, step=step, step_of_worker=jobs - 1).code == -signal.SIGKILL
    resumed = commands.run("bench", *options, "--resume")
    assert (resumed.code, resumed.err) == (0, "")
    assert measured(out) == measured(bench)
    for cell in ("alone-seed0", "alone-seed1", "kd-seed0", "kd-seed1"):
        assert weights(out / "cells" / cell) == weights(bench / "cells" / cell)


def test_a_full_disk_stops_a_run_in_one_line_and_what_was_written_resumes(
    commands: Commands, finished: tuple[Path, Ended], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    smallest = (finished[0] / "model.safetensors").stat().st_size  # a checkpoint is larger
    stopped = commands.run("distill", *TINY, "--out", out, "--quiet", file_limit=smallest)
    assert stopped.code == 1
    assert "cannot write" in stopped.complaint
    assert (out / "config.yaml").is_file()
    assert not list(out.rglob("*.pt"))
    assert not list(out.rglob("*.tmp"))
    assert commands.run("distill", *TINY, "--out", out, "--quiet", "--resume").code == 0
    same_run(out, finished[0])


def test_a_full_disk_leaves_every_file_of_a_finished_run_as_it_was(
    commands: Commands, finished: tuple[Path, Ended], tmp_path: Path
) -> None:
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text((finished[0] / "config.yaml").read_text())
    before = contents(tmp_path / "run")
    again = ("distill", *TINY, "--out", tmp_path / "run", "--quiet", "--resume")
    stopped = commands.run(*again, file_limit=100_000)
    assert stopped.code == 1
    assert "cannot write" in stopped.complaint
    after = contents(tmp_path / "run")
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} <= {"config.yaml"}  # it names the new place


def test_a_truncated_checkpoint_is_named_and_nothing_is_lost(
    commands: Commands, finished: tuple[Path, Ended], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert commands.run("distill", *TINY, "--out", out, step=3).code == -signal.SIGKILL
    newest = sorted((out / "teacher" / "checkpoints").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    before = contents(out)
    refused = commands.run("distill", *TINY, "--out", out, "--quiet", "--resume")
    assert refused.code == 2
    assert f"checkpoint {newest} is damaged; remove it" in refused.complaint
    assert contents(out) == before
    newest.unlink()
    assert commands.run("distill", *TINY, "--out", out, "--quiet", "--resume").code == 0
    same_run(out, finished[0])


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_reader_that_leaves_early_gets_no_traceback(commands: Commands, form: tuple[str, ...]) -> None:
    assert commands.run("methods", *form, closed_stdout=True) == Ended(1, "", "")
