"""Results of the parts of a long measurement, each written down when it is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillroom.errors import InputError
from stillroom.files import output_errors, write_json_atomic

__all__ = ["kept"]


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
