"""A cached teacher: logits and pooled features of every sample and view, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from stillroom.data.batch import Batch
from stillroom.errors import InputError
from stillroom.files import output_errors, write_json_atomic
from stillroom.models.signals import Signals
from stillroom.training.teacher import LiveTeacher

__all__ = ["CachedTeacher", "build_cache", "cache_key", "cacheable_views", "check_cacheable"]

RESIDENT_BYTES = 2**30  # a cache up to this size moves to the training device; larger ones stay on disk

Progress = Callable[[int, int], None]  # samples done, samples in all


class CachedTeacher:
    """A teacher that looks its answers up by the index of each sample.

    It holds logits and pooled features; methods that read feature maps need a live teacher. Epoch ``e`` sees view
    ``(e - 1) mod views``, the rule the data follow. Files of up to 1 GiB in all move to the training device, where a
    lookup is one ``index_select``; larger ones stay mapped from disk.

    Args:
        directory: A complete cache, written by :func:`build_cache`.
        needs: Signals the method reads beyond the logits.

    Raises:
        InputError: There is no complete cache, it is damaged, or it does not hold what the method needs.
    """

    def __init__(self, directory: Path, *, needs: Iterable[str] = ()) -> None:
        about = _read_about(directory)
        if about is None:
            raise InputError(f"there is no complete teacher cache in {directory}")
        needs = frozenset(needs)
        check_cacheable(needs)
        if "pooled" in needs and not about["pooled"]:
            raise InputError(
                "this method reads the teacher's pooled features, and the teacher gave none when the cache was built; "
                f"delete {directory}, or use a live teacher if no linear layer ends this one"
            )
        self.views: int = about["views"]
        self._logits = [_open_table(directory, "logits", view) for view in range(self.views)]
        self._pooled = [_open_table(directory, "pooled", view) for view in range(self.views)] if about["pooled"] else []
        self.start_epoch(1)

    @property
    def num_bytes(self) -> int:
        """Size of all views together."""
        return sum(table.nbytes for table in (*self._logits, *self._pooled))

    def to(self, device: torch.device | str) -> Self:
        """Move the tables to a device, if they are small enough for it."""
        if self.num_bytes <= RESIDENT_BYTES:
            self._logits = [table.to(device) for table in self._logits]
            self._pooled = [table.to(device) for table in self._pooled]
            self.start_epoch(self._epoch)
        return self

    def start_epoch(self, epoch: int) -> None:
        """Turn to the view of this epoch (counted from 1)."""
        self._epoch = epoch
        view = (epoch - 1) % self.views
        self._view_logits = self._logits[view]
        self._view_pooled = self._pooled[view] if self._pooled else None

    def signals(self, batch: Batch) -> Signals:
        """Return what the teacher said about the samples ``batch.index``; pictures are not looked at."""
        pooled = None if self._view_pooled is None else _look_up(self._view_pooled, batch.index)
        return Signals(_look_up(self._view_logits, batch.index), pooled=pooled)


def check_cacheable(needs: Iterable[str]) -> None:
    """Refuse signals that no cache holds.

    Raises:
        InputError: Something else than logits and pooled features is read.
    """
    if absent := sorted(frozenset(needs) - {"pooled"}):
        raise InputError(
            f"this method reads the teacher's {' and '.join(absent)}, and the cache holds logits and pooled "
            "features only; use a live teacher"
        )


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    # Both moves are free where table and index share a device; only a table left on disk costs a transfer.
    return table.index_select(0, index.to(table.device)).to(index.device, non_blocking=True)


def _open_table(directory: Path, name: str, view: int) -> Tensor:
    file = directory / f"{name}-{view}.npy"
    try:
        # Copy-on-write: torch wants writable memory, and the file must never change.
        return torch.from_numpy(np.load(file, mmap_mode="c", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise InputError(f"the teacher cache file {file} is damaged ({error}); delete {directory}") from error


def _read_about(directory: Path) -> dict[str, int] | None:
    try:
        about: dict[str, int] = json.loads((directory / "cache.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{directory / 'cache.json'} is damaged ({error}); delete {directory}") from error
    return about


def build_cache(
    live: LiveTeacher,
    loader_for_view: Callable[[int], Iterable[Batch]],
    num_samples: int,
    views: int,
    directory: Path,
    progress: Progress | None = None,
) -> Path:
    """Ask the teacher once about every sample and view, and keep the answers under ``directory``.

    A complete cache is left as it is. Each view's files appear whole or not at all, and ``cache.json``, without which
    a cache does not count, comes last: a killed build goes on with the first view that is missing.

    Args:
        live: The teacher, on the device of the batches; tap its pooled features wherever it has them, so that one
            cache serves every method it can.
        loader_for_view: View (from 0) -> all batches of the training set in that view, in any order.
        num_samples: Size of the training set.
        views: Number of views.
        directory: The folder of this one cache, usually named by :func:`cache_key`.
        progress: Told the samples done and their whole number after each batch.

    Raises:
        InputError: A loader does not yield every sample.
        OutputError: The disk is full, or the folder is not writable.
    """
    if _read_about(directory) is not None:
        return directory
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    live.start_epoch(1)
    pooled = False
    for view in range(views):
        if (directory / f"logits-{view}.npy").exists():  # logits are published after the pooled features
            pooled = (directory / f"pooled-{view}.npy").exists()
        else:
            pooled = _build_view(live, loader_for_view(view), num_samples, view, views, directory, progress)
    write_json_atomic(directory / "cache.json", {"views": views, "samples": num_samples, "pooled": pooled})
    for left_over in directory.glob("*.part"):  # of builds that were killed
        left_over.unlink(missing_ok=True)
    return directory


def _build_view(
    live: LiveTeacher,
    batches: Iterable[Batch],
    num_samples: int,
    view: int,
    views: int,
    directory: Path,
    progress: Progress | None,
) -> bool:
    """Write the tables of one view; return whether the teacher has pooled features."""
    tables: dict[str, np.memmap] = {}
    parts: dict[str, Path] = {}
    seen = np.zeros(num_samples, dtype=bool)
    try:
        for batch in batches:
            signals = live.signals(batch)
            index = batch.index.cpu().numpy()
            # Logits last: their file is the sign that the view is complete.
            answers = (
                {"logits": signals.logits}
                if signals.pooled is None
                else {"pooled": signals.pooled, "logits": signals.logits}
            )
            for name, answer in answers.items():
                if name not in tables:
                    parts[name] = directory / f"{name}-{view}.npy.{os.getpid()}.part"
                    tables[name] = _create_table(parts[name], num_samples, answer.shape[1])
                tables[name][index] = answer.cpu().numpy()
            seen[index] = True
            if progress is not None:
                progress(view * num_samples + int(seen.sum()), views * num_samples)
        if not seen.all():
            raise InputError(
                f"the loader of view {view} left out {num_samples - int(seen.sum())} of {num_samples} samples; "
                "the teacher cache needs a loader that drops none"
            )
        for name, table in tables.items():
            table.flush()
            complete = directory / f"{name}-{view}.npy"
            try:
                os.replace(parts[name], complete)
            except FileNotFoundError:
                if not complete.exists():  # it does where another run finished the same cache first and tidied up
                    raise
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return "pooled" in tables


def _create_table(path: Path, rows: int, columns: int) -> np.memmap:
    with output_errors(path):
        table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, columns))
        if hasattr(os, "posix_fallocate"):
            # A full disk must say so here: a write to a mapped page without room kills the process.
            with path.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    return table


def cacheable_views(views: int, augment: str) -> int:
    """Return how many views of each sample a cache must hold.

    Args:
        views: Fixed augmented views per sample; 0 draws fresh augmentations every epoch.
        augment: Name of the augmentation, ``"none"`` for none.

    Raises:
        InputError: Every epoch shows new pictures, so nothing can be cached.

    Example:
        >>> cacheable_views(4, "crop-flip"), cacheable_views(0, "none")
        (4, 1)
    """
    if augment == "none":
        return 1
    if views < 1:
        raise InputError(
            "the teacher cache needs pictures that come again, and fresh augmentations never do; "
            "use --data.views k (k fixed views per sample) or --data.augment none"
        )
    return views


def cache_key(live: LiveTeacher, weights: str, *, data: str, views: int, augmentation: str, seed: int) -> str:
    """Return the name of the cache of this teacher on these data: a SHA-256 over all that its answers depend on.

    Args:
        live: The teacher.
        weights: Hash of its weights.
        data: Fingerprint of the training set (pixels, labels, normalisation, order).
        views: Views per sample.
        augmentation: Augmentation and its options, in words.
        seed: Seed the views are drawn with.
    """
    parts = {
        "format": 1,
        "weights": weights,
        "architecture": repr(live.model),
        "precision": live.precision,
        "renormalise": None if live.renormalise is None else [part.tolist() for part in live.renormalise],
        "class_map": None if live.class_map is None else live.class_map.tolist(),
        "data": data,
        "views": views,
        "augmentation": augmentation,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
