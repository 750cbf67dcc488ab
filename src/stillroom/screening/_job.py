"""What the verbs of screening share: the data made ready, checks before anything is written, threads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, get_args

from stillroom.errors import InputError
from stillroom.screening._checks import one_of
from stillroom.screening.data.sources import load_interactions
from stillroom.screening.interactions import Interactions
from stillroom.screening.options import ScreeningDataOptions
from stillroom.screening.protocols import Decoys, Setting
from stillroom.screening.similarities import with_similarities
from stillroom.training.jobs import kept

__all__ = [
    "MAY_CHANGE",
    "check_same_data",
    "check_settings",
    "decoys_note",
    "limited",
    "prepared",
    "threads_each",
]

MAY_CHANGE = frozenset({"out", "jobs"})  # what does not change results


def prepared(data: str | ScreeningDataOptions) -> tuple[ScreeningDataOptions, Interactions]:
    """Return the options of a data set and the set itself, with both similarities.

    Raises:
        InputError: The data cannot be read, or lack what a similarity is computed from.
    """
    options = ScreeningDataOptions(name=data) if isinstance(data, str) else data
    return options, with_similarities(load_interactions(options), options)


def threads_each(jobs: int) -> int | None:
    """Return how many threads each of several processes gets, or nothing for one process, which takes what it finds."""
    return max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None


def limited(threads: int | None) -> AbstractContextManager[Any]:
    """Keep NumPy and scikit-learn to so many threads, or to no limit."""
    if threads is None:
        return nullcontext()
    from threadpoolctl import threadpool_limits  # scikit-learn brings it

    limits: AbstractContextManager[Any] = threadpool_limits(threads)
    return limits


def check_settings(settings: Sequence[str]) -> None:
    """Refuse settings that do not exist, and none or one twice.

    Raises:
        InputError: There is one of these.
    """
    known = get_args(Setting)
    if not settings or len(set(settings)) < len(settings):
        raise InputError(
            f"settings are {', '.join(settings) or 'none'}; name each wanted one of {', '.join(known)} once"
        )
    for setting in settings:
        one_of("setting", setting, known)


def check_same_data(out: Path, data: Interactions) -> None:
    """Write down which data a run is about, or make sure that they are the ones it was about before.

    Raises:
        InputError: What was measured so far was measured on other data.
    """
    file, digest = out / "data.json", data.digest()
    if kept(file, lambda: {"sha256": digest}).get("sha256") != digest:
        raise InputError(
            f"{data.name} is not what it was when {out} was begun; overwrite the run, or name another folder"
        )


def decoys_note(decoys: Decoys, ratio: int) -> str:
    """Say what counts as negative."""
    return {
        "unknown": "Every test pair that is not known to interact counts as negative; some of them do interact.",
        "measured": "Only pairs measured as inactive count as negative.",
        "sampled": f"Negatives are sampled from the test pairs not known to interact, {ratio} for each interaction.",
    }[decoys]
