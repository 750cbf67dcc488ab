"""Small runs for the tests of the command line, and how one is started and how it ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = Path(__file__).parent / "command_server.py"

DATA = ("--data.per_class", "4", "--recipe.batch_size", "20")  # two steps an epoch
UNTAUGHT = (*DATA, "--recipe.epochs", "2", "--checkpoint_every", "1")  # of a teacher nothing is said
TINY = (*UNTAUGHT, "--teacher", "resnet14")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}

TIMES = {"seconds", "synthesis_seconds", "images_per_second", "latency_ms"}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int  # minus the signal that killed it
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error, of a command that was started with ``--quiet``."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self
        assert "Traceback" not in self.err
        return lines[0]


class Commands:
    """Starts commands in processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.server = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ONE_THREAD
        )

    def run(self, *argv: object, cwd: Path | None = None, **job: Any) -> Ended:
        """Run one command; ``job`` says what happens to it on its way, see ``command_server``."""
        self.count += 1
        out, err = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        asked = {"step": 0, "step_of_worker": 0, "signal": "SIGKILL", "file_limit": 0, "closed_stdout": False}
        asked |= {"files": 0, "suffix": ".png"} | job
        asked |= {"argv": [str(word) for word in argv], "cwd": str(cwd or self.folder)}
        asked |= {"stdout": str(out), "stderr": str(err)}
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(asked), file=self.server.stdin, flush=True)
        code = os.waitstatus_to_exitcode(int(self.server.stdout.readline()))
        return Ended(code, out.read_text(), err.read_text())

    def end(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


def measured(run: Path) -> dict[str, Any]:
    """Return what a run measured, without what depends on the clock and on where it lies."""
    result = json.loads((run / "result.json").read_text())
    return {key: value for key, value in _timeless(result).items() if key not in ("out", "environment")}


def history(run: Path) -> list[dict[str, Any]]:
    """Return the epochs of a training, without times."""
    return [_timeless(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> bytes:
    """Return the stored weights of a run."""
    return (run / "model.safetensors").read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value
