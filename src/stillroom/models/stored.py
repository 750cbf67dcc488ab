"""The two files of every stored model, ``model.safetensors`` and ``model.json``: written atomically, tied by a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from stillroom.errors import InputError
from stillroom.files import output_errors, plain, write_bytes_atomic, write_json_atomic
from stillroom.models.weights import read_weights

__all__ = ["Fields", "StoredModel", "read_model", "state_hash", "write_model"]


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_model(
    directory: str | Path, state: Mapping[str, Tensor], kind: tuple[str, int], about: Mapping[str, object]
) -> None:
    """Write the weights and what is to be known of them into a directory, each file atomically.

    Args:
        directory: Created when missing.
        state: The weights.
        kind: Name and version of the format.
        about: What ``model.json`` says beside the format and the weights' hash.

    Raises:
        InputError: ``about`` holds what JSON does not know.
        OutputError: The disk is full or the directory not writable; files written before stay whole.
    """
    name, version = kind
    try:
        told = plain({"format": name, "format_version": version, **about, "weights_sha256": state_hash(state)})
    except TypeError as error:
        raise InputError(f"the model card cannot be stored: {error}") from error
    directory = Path(directory)
    with output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    # Copies: tied weights share memory, which the format refuses.
    tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}
    write_bytes_atomic(directory / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_json_atomic(directory / "model.json", told)


@dataclass(frozen=True)
class StoredModel:
    """What ``model.json`` says, and where the weights lie."""

    file: Path
    about: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The weights' file, beside ``model.json``."""
        return self.file.with_name("model.safetensors")

    def state(self) -> dict[str, Tensor]:
        """Read the weights.

        Raises:
            InputError: They are missing, damaged, or not those that ``model.json`` describes.
        """
        expected = Fields(self.about, self.file).text("weights_sha256")
        state = read_weights(self.weights)
        if state_hash(state) != expected:
            raise InputError(
                f"{self.weights} is not what {self.file.name} describes (its hash differs); save the model again"
            )
        return state


def read_model(path: str | Path, kind: tuple[str, int]) -> StoredModel:
    """Read ``model.json`` of a format.

    Args:
        path: A directory, or its ``model.json``.
        kind: Name and version of the format.

    Raises:
        InputError: The file is missing, damaged, or of another format or version.
    """
    name, version = kind
    file = Path(path)
    file = file if file.suffix == ".json" else file / "model.json"
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist; a stored model is model.json and model.safetensors") from error
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{file} is damaged or not readable: {error}") from error
    if not isinstance(about, dict) or about.get("format") != name:
        found = about.get("format") if isinstance(about, dict) else None
        other = (
            f" but a {found.replace('-', ' '):.40}" if isinstance(found, str) and found.startswith("stillroom-") else ""
        )
        raise InputError(f"{file} describes no {name.replace('-', ' ')}{other}")
    if about.get("format_version") != version:
        raise InputError(
            f"{file} has format version {about.get('format_version')!r:.20}, this stillroom reads {version}; "
            "load it with the version that wrote it"
        )
    return StoredModel(file, about)


class Fields:
    """Typed access to what a file says; a field that is missing or of another type is the user's to know."""

    def __init__(self, values: Mapping[str, object], file: Path) -> None:
        self.values = values
        self.file = file

    def _field(self, name: str, kinds: tuple[type, ...], words: str) -> Any:
        value = self.values.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise InputError(f"{self.file}: {name!r} must be {words}, not {value!r:.60}")
        return value

    def text(self, name: str) -> str:
        return str(self._field(name, (str,), "a text"))

    def number(self, name: str) -> int:
        value = int(self._field(name, (int,), "a whole number"))
        if not 1 <= value <= 1_000_000:
            raise InputError(f"{self.file}: {name!r} must lie in 1..1000000, not {value}")
        return value

    def real(self, name: str) -> float:
        return float(self._field(name, (int, float), "a number"))

    def row(self, name: str, kinds: tuple[type, ...], words: str) -> tuple[Any, ...]:
        values = self._field(name, (list,), words)
        if not all(isinstance(value, kinds) and not isinstance(value, bool) for value in values):
            raise InputError(f"{self.file}: {name!r} must be {words}")
        return tuple(values)

    def table(self, name: str) -> dict[str, object]:
        return dict(self._field(name, (dict,), "an object"))
