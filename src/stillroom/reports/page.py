"""A report made of sections: sentences, tables, plots and pictures, in one self-contained page."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillroom import __version__
from stillroom.errors import MissingExtraError
from stillroom.reports.html import render
from stillroom.reports.tables import Table

__all__ = ["Figure", "Gallery", "Page", "Picture", "Section", "enlarge", "environment", "picture", "write_page"]


@dataclass(frozen=True)
class Figure:
    """A plot as :func:`stillroom.reports.plots.svg` returns it, and what it shows."""

    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG in base64, as :func:`picture` returns it, and what it shows."""

    png: str
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Small drawings side by side, as many in a line as there is room for."""

    figures: Sequence[Figure]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with what stands below it."""

    title: str = ""
    text: str = ""
    parts: Sequence[Figure | Gallery | Picture | Table] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page shows.

    Args:
        kind: The kind of report, in two or three words.
        title: What was done, in a few words.
        headline: What came out, in a sentence.
        sections: In this order.
        config: The complete configuration, nested or flat.
        environment: Versions and devices.
        command: The command line that reproduces the run.
        notes: Sentences the reader must know.
    """

    kind: str
    title: str
    headline: str
    sections: Sequence[Section]
    config: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    command: str = ""
    notes: Sequence[str] = ()


def write_page(path: Path, page: Page) -> None:
    """Write the page, atomically.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OutputError: The file cannot be written.
    """
    content: dict[str, Any] = {"kind": page.kind, "headline": page.headline, "sections": page.sections}
    render(path, "sections.html", page, content)


def picture(pixels: NDArray[np.uint8], caption: str = "", *, least: int = 480) -> Picture:
    """Return an image for a page, enlarged by a whole factor until it is at least ``least`` pixels wide.

    Args:
        pixels: [H, W] grey or [H, W, 3] colour.
        caption: What it shows.
        least: Width to reach.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Pillow", "vision") from error
    out = io.BytesIO()
    Image.fromarray(enlarge(pixels, least)).save(out, format="PNG", optimize=True)
    return Picture(base64.b64encode(out.getvalue()).decode(), caption)


def enlarge(pixels: NDArray[np.uint8], least: int) -> NDArray[np.uint8]:
    """Repeat pixels by a whole factor until the image [H, W, ...] is at least ``least`` wide.

    Example:
        >>> enlarge(np.zeros((1, 3), np.uint8), 5).shape
        (2, 6)
    """
    factor = max(1, -(-least // pixels.shape[1]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def environment() -> dict[str, Any]:
    """Return the versions and devices a result depends on."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "stillroom": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "accelerators": devices,
    }
