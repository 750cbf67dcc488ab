"""Commands, and the finished runs that several tests look at."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.commands import DATA, ONE_THREAD, TINY, Commands, Ended
from stillroom.cli.main import main


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.end()


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command in the process of the tests."""

    def run(*argv: object) -> Ended:
        capfd.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def finished(commands: Commands, runs: Path) -> tuple[Path, Ended]:
    """A distillation that nothing happened to: its directory, and how it ended."""
    ended = commands.run("distill", *TINY, "--out", runs / "finished", "--json")
    assert ended.code == 0, ended.err
    return runs / "finished", ended


@pytest.fixture(scope="session")
def bench(commands: Commands, runs: Path) -> Path:
    """A bench that nothing happened to."""
    options = (*DATA, "--recipe.epochs", "1", "--teacher", "resnet8", "--methods", "alone,kd", "--seeds", "0,1")
    ended = commands.run("bench", *options, "--out", runs / "bench", "--quiet")
    assert ended.code == 0, ended.err
    return runs / "bench"


@pytest.fixture(scope="session")
def torchrun(runs: Path) -> Ended:
    """How a distillation by two processes ended."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = [*DATA, "--recipe.batch_size", "10", "--recipe.epochs", "1", "--teacher", "resnet8", "--no_baseline"]
    command = [*start, "-m", "stillroom", "distill", *options, "--out", str(runs / "torchrun"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ONE_THREAD)
    return Ended(done.returncode, done.stdout, done.stderr)
