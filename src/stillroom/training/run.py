"""The run directory: one folder holds what a run was asked, what it measured and what it made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stillroom.errors import InputError, MissingExtraError
from stillroom.files import output_errors, plain, write_json_atomic, write_text_atomic

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["RunDirectory", "first_difference"]

MARK = "# A run of stillroom.\n"


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run: ``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, the model, the report, the result.

    Args:
        path: The folder.
        writes: Whether this process writes; of several processes only the first does.

    Example:
        >>> RunDirectory(Path("run")).part("student").metrics.as_posix()
        'run/student/metrics.jsonl'
    """

    path: Path
    writes: bool = True

    @classmethod
    def create(
        cls,
        path: str | Path,
        config: Mapping[str, Any],
        *,
        overwrite: bool = False,
        resume: bool = False,
        keep: Collection[Path] = (),
        may_change: Collection[str] = (),
        fabric: Fabric | None = None,
    ) -> RunDirectory:
        """Make the folder and write ``config.yaml``, or take up one that holds the same configuration.

        Args:
            path: The folder; its parents are made.
            config: Every option of the run, re-runnable.
            overwrite: Empty a folder that holds a run. A folder that is not a run's is never emptied.
            resume: Take up the run that is there.
            keep: What the run reads: a folder that holds one of these is not emptied.
            may_change: Options, as dotted names, that need not agree on ``resume`` (those that do not change results).
            fabric: Given, only the first process looks and writes, and the others wait for it.

        Raises:
            InputError: The folder is in use, there is nothing to resume, or the configuration is another one.
            OutputError: It cannot be written.
        """
        run = cls(Path(path), writes=fabric is None or fabric.is_global_zero)
        if run.writes:
            run._prepare(plain(config), overwrite=overwrite, resume=resume, keep=keep, may_change=may_change)
        if fabric is not None:
            fabric.barrier()
        return run

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def part(self, name: str) -> RunDirectory:
        """Return the folder of one training of several within this run (its own metrics and checkpoints)."""
        return RunDirectory(self.path / name, self.writes)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``."""
        if self.writes:
            write_json_atomic(self.result, result)

    def write_report(self, html: str) -> None:
        """Write ``report.html``."""
        if self.writes:
            write_text_atomic(self.report, html)

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Make ``metrics.jsonl`` hold exactly these epochs, one JSON object a line."""
        if self.writes:
            with output_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            write_text_atomic(self.metrics, "".join(_line(record) for record in history))

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one epoch to ``metrics.jsonl``; when that fails the file is left as it was."""
        if not self.writes:
            return
        line = _line(record).encode()
        with output_errors(self.metrics), open(self.metrics, "ab", buffering=0) as file:
            before = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(before)
                raise

    def tensorboard(self, next_epoch: int) -> SummaryWriter | None:
        """Return a writer into ``tensorboard/`` that forgets epochs from ``next_epoch`` on; ``None`` if not writing.

        Raises:
            MissingExtraError: tensorboard is not installed.
        """
        if not self.writes:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError("tensorboard", "vision") from None
        return SummaryWriter(str(self.path / "tensorboard"), purge_step=next_epoch)

    def _prepare(
        self, config: Any, *, overwrite: bool, resume: bool, keep: Collection[Path], may_change: Collection[str]
    ) -> None:
        if overwrite and resume:
            raise InputError("overwrite and resume exclude each other: one empties the run, the other continues it")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; name a folder for the run")
        used = self.path.is_dir() and any(self.path.iterdir())
        if resume:
            if not self.path.is_dir():
                raise InputError(f"there is no run to resume at {self.path}")
            if used:
                self._check_config(config, may_change)
        elif used and not overwrite:
            raise InputError(f"{self.path} is not empty; choose another folder, resume the run there or overwrite it")
        elif used:
            self._check_disposable(keep)
            with output_errors(self.path):
                self._empty()
        with output_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_text_atomic(self.config, MARK + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def _check_disposable(self, keep: Collection[Path]) -> None:
        """Make sure that the folder is a run's and holds nothing that is still needed."""
        # Other tools have a config.yaml too; the folder of one of them must never be emptied.
        if not self.config.is_file() or not self.config.read_bytes().startswith(MARK.encode()):
            raise InputError(f"{self.path} holds no config.yaml of stillroom, so it is no run and is not overwritten")
        here = self.path.resolve()
        for path in keep:
            if path.resolve().is_relative_to(here):
                raise InputError(f"{path} lies in {self.path}, which would be emptied; name another folder for the run")

    def _empty(self) -> None:
        # config.yaml goes last: a kill in between leaves a folder that can still be overwritten.
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == self.config.name):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _check_config(self, config: Any, may_change: Collection[str]) -> None:
        if not self.config.is_file():
            raise InputError(f"{self.path} holds no config.yaml, so there is no run to resume")
        try:
            before = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            raise InputError(f"{self.config} is damaged, so the run cannot be resumed; overwrite it") from None
        difference = first_difference(before, config, may_change)
        if difference is not None:
            raise InputError(f"{self.path} cannot be resumed with another configuration: {difference}")


def first_difference(before: object, now: object, may_change: Collection[str] = (), name: str = "") -> str | None:
    """Say where two nested plain values differ first, or return ``None`` when they agree.

    Example:
        >>> first_difference({"recipe": {"lr": 0.1, "epochs": 3}}, {"recipe": {"lr": 0.1, "epochs": 5}})
        'recipe.epochs was 3, is now 5'
    """
    if name in may_change:
        return None
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in [*before, *(key for key in now if key not in before)]:
            inner = f"{name}.{key}" if name else str(key)
            found = first_difference(before.get(key), now.get(key), may_change, inner)  # absent as good as nothing
            if found is not None:
                return found
        return None
    return None if before == now else f"{name} was {_shown(before)}, is now {_shown(now)}"


def _shown(value: object) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value, default=str)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(plain(record), ensure_ascii=False) + "\n"
