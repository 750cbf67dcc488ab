"""Time several training loops side by side: the same batches, one process, turn by turn, ratios within each round."""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from stillroom.data.batch import Batch

__all__ = [
    "Contender",
    "TimedLoader",
    "compare",
    "environment",
    "keep_freed_memory",
    "make_batches",
    "print_table",
    "rounds_parser",
]


class TimedLoader:
    """One epoch of the same few batches: first those that warm up, then those that are timed.

    The clock starts when the loop asks for the first timed batch and stops when it asks for one more than the last,
    so everything a loop does between two batches counts, and what it does once an epoch does not.

    Args:
        batches: Taken in turn; named tuples of tensors.
        warm_up: Steps before the clock starts (a new optimiser creates its state in the first).
        steps: Steps that are timed.
    """

    def __init__(self, batches: Sequence[tuple[Any, ...]], *, warm_up: int, steps: int) -> None:
        self.batches, self.warm_up, self.steps = batches, warm_up, steps
        self.wall = self.cpu = 0.0  # seconds per timed step

    def __len__(self) -> int:
        return self.warm_up + self.steps

    def epoch(self, number: int = 1, start: int = 0) -> Iterator[Any]:
        device = self.batches[0][0].device
        for step in range(len(self)):
            if step == self.warm_up:
                _wait(device)
                wall, cpu = time.perf_counter(), time.process_time()
            yield self.batches[step % len(self.batches)]
        _wait(device)
        self.wall = (time.perf_counter() - wall) / self.steps
        self.cpu = (time.process_time() - cpu) / self.steps


Contender = Callable[[TimedLoader], None]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compare(
    contenders: Mapping[str, Contender], loader: TimedLoader, *, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Return wall and processor seconds per step of every contender in every round.

    Each round runs every contender once, starting with another one than the round before, so that drifts of the
    machine and the state in which a predecessor leaves the caches fall on all alike. One round is thrown away first.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(-1, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            contenders[name](loader)
            if number >= 0:
                times[name].append((loader.wall, loader.cpu))
    return times


def print_table(
    times: Mapping[str, Sequence[tuple[float, float]]], *, baseline: str, targets: Mapping[str, float] | None = None
) -> None:
    """Print one Markdown row per contender: its step and its ratio to the baseline of the same round."""
    print(f"| loop | ms per step | ms beyond | ratio to *{baseline}*: median | quartiles | processor time | target |")
    print("|---|---|---|---|---|---|---|")
    for name, own in times.items():
        ratios = [wall / other for (wall, _), (other, _) in zip(own, times[baseline], strict=True)]
        processor = [cpu / other for (_, cpu), (_, other) in zip(own, times[baseline], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        target = (targets or {}).get(name)
        verdict = "" if target is None else f"≤ {target:.2f}: {'met' if middle <= target else '**missed**'}"
        milliseconds = 1e3 * statistics.median(wall for wall, _ in own)
        beyond = 1e3 * statistics.median(
            wall - other for (wall, _), (other, _) in zip(own, times[baseline], strict=True)
        )
        print(
            f"| {name} | {milliseconds:.4g} | {beyond:.2g} | {middle:.3f} | {low:.3f} – {high:.3f} | "
            f"{statistics.median(processor):.3f} | {verdict} |"
        )
    print(flush=True)


def make_batches(count: int, *, shape: Sequence[int], batch: int, classes: int, device: torch.device) -> list[Batch]:
    """Return random batches, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(batch, *shape, generator=generator).to(device),
            torch.randint(classes, (batch,), generator=generator).to(device),
            torch.arange(number * batch, (number + 1) * batch, device=device),
        )
        for number in range(count)
    ]


def rounds_parser(description: str, *, batches: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the options all benchmarks share; ``--batch`` only where there are batches of images."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="rounds, at least 2; each runs every loop once")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per loop and round")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them that are not timed, at least 1")
    if batches:
        parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--threads", type=int, default=1, help="threads of an operation")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def environment(arguments: argparse.Namespace) -> torch.device:
    """Set threads and memory allocator, print the command and what it ran on, and return the device."""
    torch.set_num_threads(arguments.threads)
    keeps = keep_freed_memory()
    device = torch.device(arguments.device)
    script = os.path.basename(sys.argv[0])
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()}, {os.cpu_count()} cores"
    )
    batches = f", batches of {arguments.batch}" if "batch" in arguments else ""
    print(f"`python benchmarks/{' '.join([script, *sys.argv[1:]])}`\n")
    print(
        f"{hardware}; {arguments.threads} thread(s), load average {os.getloadavg()[0]:.1f} at the start; "
        f"Python {platform.python_version()}, torch {torch.__version__}. {arguments.rounds} rounds of "
        f"{arguments.steps} timed steps after {arguments.warm_up} untimed{batches}. "
        f"Freed memory {'is kept' if keeps else 'may be given back'} between steps.\n"
    )
    return device


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; return whether it did.

    By default it gives the end of the heap back to the system now and then, and what is asked for again costs page
    faults. How often depends on the addresses a process happens to get: up to a third of a small network's step, in any
    of the loops.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):
        return False
    mmap_threshold, trim_threshold = -3, -1  # from malloc.h
    return bool(mallopt(mmap_threshold, 32 * 2**20)) and bool(mallopt(trim_threshold, 2**31 - 1))


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
