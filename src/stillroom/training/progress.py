"""What a person sees while training: a bar on a terminal, one line an epoch elsewhere, always on standard error."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

__all__ = ["CellClock", "Progress", "counting"]

SHORT = {"images": "img"}
SCORES = ("accuracy", "micro_f1")  # percentages

_BAR = 16
_WIDE = 110  # columns of a terminal that has room for a bar beside the numbers
_SILENCE = 10.0  # seconds between lines of a count
_LONG_SILENCE = 60.0  # seconds after which a line comes between epochs where there is no terminal


class Progress:
    """Progress of one training; a context manager.

    Args:
        label: What is trained.
        epochs: Epochs in all.
        steps: Steps per epoch.
        done: Steps that an interrupted run did already.
        show: Whether to say anything.
        unit: What is counted by the second, in the plural.
    """

    def __init__(
        self, label: str, epochs: int, steps: int, *, done: int = 0, show: bool = True, unit: str = "images"
    ) -> None:
        self.label, self.epochs, self.steps, self.done, self.show = label, epochs, steps, done, show
        self.unit = unit
        self.bar: Bar | None = None
        self.room = 0  # characters for description and numbers
        self.started = self.spoken = time.monotonic()

    def __enter__(self) -> Progress:
        if self.show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            console = Console(stderr=True)
            wide = console.width >= _WIDE
            columns = (
                TextColumn("{task.description}"),
                *((BarColumn(bar_width=_BAR),) if wide else ()),
                TaskProgressColumn(),
                TextColumn("{task.fields[numbers]}"),
                TextColumn("eta"),
                TimeRemainingColumn(),
            )
            self.room = console.width - len(" 100%  eta 00:00:00 ") - (_BAR + 1 if wide else 0)
            self.bar = Progress(*columns, console=console, refresh_per_second=2)
            self.bar.start()
            description = f"{self.label}  {self.epochs} epochs"
            self.bar.add_task(description, total=self.epochs * self.steps, completed=self.done, numbers="starting")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, epoch: int, step: int, means: Mapping[str, float], rate: float) -> None:
        """Say how far the epoch is."""
        if self.bar is not None:
            self._move(epoch, (epoch - 1) * self.steps + step, self._numbers(means, rate))
        elif self.show and time.monotonic() - self.spoken > _LONG_SILENCE:
            self._print(f"{self._epoch(epoch)}  step {step}/{self.steps}  {self._numbers(means, rate)}")

    def epoch(self, epoch: int, record: Mapping[str, Any], *, evaluated: bool = True) -> None:
        """Say what an epoch ended with; off a terminal short epochs without an evaluation are passed over."""
        numbers = self._numbers(record, record[f"{self.unit}_per_second"])
        if self.bar is not None:
            self._move(epoch, epoch * self.steps, numbers)
        elif self.show and (evaluated or time.monotonic() - self.spoken > _SILENCE):
            finished = epoch * self.steps - self.done
            left = (time.monotonic() - self.started) / max(finished, 1) * (self.epochs - epoch) * self.steps
            self._print(f"{self._epoch(epoch)}  {numbers}  eta {_clock(left)}")

    def _move(self, epoch: int, completed: int, numbers: str) -> None:
        assert self.bar is not None
        description = self._epoch(epoch)
        while len(description) + len(numbers) > self.room and "  " in numbers:  # the last ones matter least
            numbers = numbers.rpartition("  ")[0]
        self.bar.update(self.bar.task_ids[0], completed=completed, description=description, numbers=numbers)

    def _epoch(self, epoch: int) -> str:
        return f"{self.label}  epoch {epoch}/{self.epochs}".strip()

    def _numbers(self, means: Mapping[str, float], rate: float) -> str:
        """Return the loss, every score and the speed; the other parts are in the metrics file."""
        named = {name: next((suffix for suffix in SCORES if name.endswith(suffix)), None) for name in means}
        scores = [f"{name.removesuffix(f'_{of}')} {means[name]:.1f}%" for name, of in named.items() if of is not None]
        return "  ".join(
            [f"loss {means['train_loss']:.4g}", *scores, f"{rate:.0f} {SHORT.get(self.unit, self.unit)}/s"]
        )

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self.spoken = time.monotonic()


@contextlib.contextmanager
def counting(label: str, total: int, *, done: int = 0, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Show how far a job of equal parts is: a bar on a terminal, a line now and then elsewhere.

    Args:
        label: What is done.
        total: Parts in all.
        done: Parts that were there before.
        show: Whether to say anything.

    Yields:
        To be told how many parts are done.
    """
    if show and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(_BAR), MofNCompleteColumn(), TextColumn("eta"))
        with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), refresh_per_second=2) as bar:
            task = bar.add_task(label, total=total, completed=done)
            yield lambda now: bar.update(task, completed=now)
        return
    started = spoken = time.monotonic()

    def tell(now: int) -> None:
        nonlocal spoken
        moment = time.monotonic()
        if show and now > done and (now == total or moment - spoken > _SILENCE):
            left = (moment - started) / (now - done) * (total - now)
            print(f"{label}  {now}/{total}  eta {_clock(left)}", file=sys.stderr, flush=True)
            spoken = moment

    yield tell


class CellClock:
    """Tells how far a bench is, on standard error: a line when it begins and one for every cell that ends.

    Args:
        cells: Cells in all.
        done: Those an earlier run finished.
        show: Whether to say anything.
    """

    def __init__(self, cells: int, done: int, *, show: bool = True) -> None:
        self.missing, self.show, self.ended = cells - done, show, 0
        self.started = time.monotonic()
        self._say(f"{cells} cells, of which {done} are done already")

    def tick(self, method: str, seed: int, score: float, seconds: float) -> None:
        """Say that a cell ended, with its score in percent and how long it took."""
        self.ended += 1
        left = (time.monotonic() - self.started) / self.ended * (self.missing - self.ended)
        told = f"[{self.ended}/{self.missing}] {method} seed {seed}: {score:.2f} % in {seconds:.0f} s"
        self._say(f"{told}  eta {_clock(left)}")

    def _say(self, text: str) -> None:
        if self.show:
            print(text, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
