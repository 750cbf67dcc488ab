"""A guarded application around a model small enough to know its answers by heart."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from stillroom.defense.add import fit_reference
from stillroom.defense.contracts import Images, Observed
from stillroom.defense.dadd import ADD, DetectAndPoison
from stillroom.defense.poison import KeyedPoison
from stillroom.defense.service.app import create_app
from stillroom.defense.service.keys import hash_admin_key, new_key
from stillroom.defense.service.settings import Settings
from stillroom.defense.service.sqlite_store import SQLiteStore
from stillroom.defense.service.store import Limits, Store

SHAPE = (3, 4, 4)
CLASSES = ("dark", "red", "green", "blue")
WINDOW = 4
WIDTH = 3
ADMIN = "an-administrators-key-of-tests"
SECRET = b"0123456789abcdef"


def observe(images: Images) -> Observed:
    """The features are the mean of each channel, the class is the strongest of them."""
    means = images.reshape(len(images), 3, -1).mean(2) / np.float32(255)
    logits = 12 * np.concatenate([np.full((len(images), 1), 0.2), means], 1)
    return Observed(means.astype(np.float32), logits.astype(np.float32))


def known_images(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images of the training data: one strong channel each, the others weak."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 40, (count, *SHAPE), np.uint8)
    strong = draw.integers(0, 3, count)
    images[np.arange(count), strong] = draw.integers(180, 255, (count, *SHAPE[1:]), np.uint8)
    dark = draw.random(count) < 0.25
    images[dark] //= 16
    return images


def foreign_images(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images of nothing: grey of any brightness."""
    draw = np.random.default_rng(seed)
    return np.broadcast_to(draw.integers(90, 255, (count, 1, 1, 1), np.uint8), (count, *SHAPE)).copy()


def guard(store: Store, threshold: float = 0.1) -> DetectAndPoison:
    observed = observe(known_images(400))
    reference = fit_reference(observed.features, observed.logits.argmax(1), len(CLASSES))
    return DetectAndPoison(ADD(reference, store), threshold, KeyedPoison(SECRET))


def settings(**changes: Any) -> Settings:
    standard = {"admin_digest": hash_admin_key(ADMIN), "secret": SECRET, "limits": Limits(6e5, 10_000), "workers": 2}
    return Settings(**{**standard, **changes})


class Service:
    """An application with its store, and the keys of two accounts."""

    def __init__(self, folder: Path, *, store: Any = None, defended: bool = True, **changes: Any) -> None:
        self.store = store or SQLiteStore(folder / "accounts.sqlite", size=WINDOW, width=WIDTH, identity="test")
        self.app: FastAPI = create_app(
            changes.pop("observe", observe), CLASSES, SHAPE, guard(self.store) if defended else None, self.store,
            settings(**changes),
        )  # fmt: skip
        self.key = self.make_key("alice")

    def make_key(self, account: str) -> str:
        text, key = new_key(account)
        self.store.add_key(key)
        return text

    def client(self, key: str | None = None) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app)
        headers = {"Authorization": f"Bearer {self.key if key is None else key}"}
        return httpx.AsyncClient(transport=transport, base_url="http://guard", headers=headers)

    def admin(self) -> httpx.AsyncClient:
        return self.client(ADMIN)


def png(image: np.ndarray[Any, np.dtype[np.uint8]], kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(out, kind, **options)
    return out.getvalue()


def as_json(images: np.ndarray[Any, np.dtype[np.uint8]]) -> dict[str, list[str]]:
    return {"images": [base64.b64encode(png(image)).decode() for image in images]}


def as_files(parts: list[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("images", (f"{i}.png", part, "image/png")) for i, part in enumerate(parts)]


MakeService = Callable[..., Service]
