"""Atomic writing: a killed or failed write leaves the previous file or the new one, never half of one."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from stillroom.errors import OutputError

__all__ = ["output_errors", "plain", "write_bytes_atomic", "write_json_atomic", "write_text_atomic"]


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing ``path`` into one clear line.

    Raises:
        OutputError: The disk is full, a limit is reached, the folder is missing or not writable.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {path}: {reason}; files written earlier are intact") from error


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to a temporary file beside ``path``, then put it in place in one move.

    Raises:
        OutputError: It could not be written; what stood at ``path`` before is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with output_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text_atomic(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, like :func:`write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: object) -> None:
    """Write ``value``, made :func:`plain`, as indented JSON."""
    write_text_atomic(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def plain(value: object) -> Any:
    """Return ``value`` made of what JSON and YAML know: dicts, lists, strings, numbers, booleans, nothing.

    Data classes become dicts, tuples and sets lists, paths strings, numbers that are not finite ``None``.

    Raises:
        TypeError: Something else is in there.

    Example:
        >>> plain({"out": Path("run"), "milestones": (0.5, float("nan"))})
        {'out': 'run', 'milestones': [0.5, None]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be written as JSON or YAML")
