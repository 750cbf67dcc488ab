"""The parts of a long measurement: done here or in processes of their own, each written down when it is there."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from stillroom.errors import FailureError, InputError
from stillroom.files import output_errors, write_json_atomic

__all__ = ["check_cells", "kept", "run_jobs"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def kept(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a part measured before, or measure it and write it down.

    Raises:
        InputError: The file is damaged.
        OutputError: It cannot be written.
    """
    if file.is_file():
        try:
            before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{file} is damaged; remove it and resume") from None
        return before
    record = measure()
    with output_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(file, record)
    return record


def check_cells(methods: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Refuse a bench whose cells would not be methods x seeds, each once.

    Raises:
        InputError: There is nothing to train, something twice, a negative seed or no process to train in.
    """
    if not methods or not seeds:
        raise InputError("a bench needs at least one method and one seed")
    for kind, values in (("method", methods), ("seed", seeds)):
        if len(set(values)) < len(values):
            raise InputError(f"a {kind} is named twice: {', '.join(map(str, values))}")
    if min(seeds) < 0:
        raise InputError(f"seed {min(seeds)} is negative; seeds must be at least 0")
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")


def run_jobs(work: Callable[[ItemT], ResultT], items: Sequence[ItemT], jobs: int) -> Iterator[tuple[ItemT, ResultT]]:
    """Do the same work on every item and yield each with its result as it ends.

    Args:
        work: With more than one job a function of a module, or a ``partial`` of one: processes import it by name.
        items: What it is done on.
        jobs: Processes at the same time; with one the work is done here, in order.

    Raises:
        FailureError: A process died.
    """
    if jobs == 1:
        for item in items:
            yield item, work(item)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_leave_with_parent) as pool:
        futures = {pool.submit(work, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise FailureError(
                "a training process died (killed for memory?); resume the bench with fewer jobs at a time"
            ) from None
        except BaseException:
            for process in active_children():  # what they have done is in their checkpoints
                process.terminate()
            raise


def _leave_with_parent() -> None:
    """End a worker without a word when the bench is interrupted, and when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
