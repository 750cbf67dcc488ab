"""Checkpoints that continue a killed training bit for bit, and that a killed or failed write cannot spoil."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.errors import InputError
from stillroom.files import output_errors, write_bytes_atomic
from stillroom.training.run import first_difference

__all__ = ["load_newest", "random_states", "restore_random_states", "save"]

_KEEP = 2


def save(folder: Path, state: Mapping[str, Any], *, epoch: int, step: int) -> Path:
    """Write ``state`` as the newest checkpoint and keep the last two.

    Args:
        folder: Where checkpoints lie; it is made.
        state: Tensors, numbers, strings and containers of them: what loads with ``weights_only=True``.
        epoch: The epoch training continues in, counted from 1.
        step: Steps of that epoch already done.

    Raises:
        OutputError: It could not be written; the checkpoints before it are intact.
    """
    path = folder / f"epoch-{epoch:05d}-step-{step:07d}.pt"
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with output_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, buffer.getbuffer())
    with output_errors(folder):
        for old in _paths(folder)[:-_KEEP]:
            old.unlink()
        for unfinished in folder.glob(".*.tmp"):  # a killed write's
            unfinished.unlink()
    return path


def load_newest(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the newest checkpoint's state, or ``None`` when there is none.

    Args:
        folder: Where checkpoints lie.
        identity: What must agree with the checkpoint's ``identity`` entry for the result to be the same.

    Raises:
        InputError: The newest one is damaged (nothing is removed or passed over silently), or it belongs to a run with
            another recipe, seed or data.
    """
    paths = _paths(folder)
    if not paths:
        return None
    state = _read(paths[-1])
    if state is None:
        intact = next((path for path in reversed(paths[:-1]) if _read(path) is not None), None)
        after = f"continues from {intact.name}, which is intact" if intact else "starts from the beginning"
        raise InputError(f"checkpoint {paths[-1]} is damaged; remove it and resuming {after}")
    difference = first_difference(state["identity"], identity)
    if difference is not None:
        raise InputError(f"{folder} belongs to another training: {difference}")
    return state


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of every global random generator a training step may draw from."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    inner: dict[str, Any] = numpy_state["state"]
    return {
        "python": [version, list(words), gauss],
        "numpy": {
            "bit_generator": numpy_state["bit_generator"],
            "key": inner["key"].tolist(),
            "pos": int(inner["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Put back what :func:`random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kept = states["numpy"]
    np.random.set_state(
        {
            "bit_generator": kept["bit_generator"],
            "state": {"key": np.array(kept["key"], dtype=np.uint32), "pos": kept["pos"]},
            "has_gauss": kept["has_gauss"],
            "gauss": kept["gauss"],
        }
    )
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*-step-*.pt"))


def _read(path: Path) -> dict[str, Any] | None:
    """Return the state in a file, or ``None`` when the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums it writes
            if archive.testzip() is not None:
                return None
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError):
        return None
    return state if isinstance(state, dict) and "identity" in state else None
