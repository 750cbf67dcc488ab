"""What the verbs print: one JSON object, tables and sentences that fit the terminal."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping
from typing import Any, TextIO

from stillroom.files import plain
from stillroom.reports.tables import Column, Table, print_table

__all__ = ["print_result", "say", "show_table"]


def print_result(result: Mapping[str, Any]) -> None:
    """Print a result as one JSON object on standard output."""
    print(json.dumps(plain(result), ensure_ascii=False))


def show_table(table: Table, stream: TextIO) -> None:
    """Print a table with its units under the headings, so that it fits 80 columns."""
    columns = [Column(column.title.replace(" [", "\n["), column.spec) for column in table.columns]
    print_table(Table(columns, table.rows), file=stream)


def say(text: str, stream: TextIO) -> None:
    """Print a sentence; on a terminal it is wrapped between words."""
    print(textwrap.fill(text, min(shutil.get_terminal_size().columns, 100)) if stream.isatty() else text, file=stream)
