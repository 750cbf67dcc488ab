"""A victim small enough for seconds: which quadrant of an image is the brightest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from stillroom.defense.attacks.clone import PixelInput
from stillroom.defense.contracts import Answers, Images, Observed, Queries, softmax

SHAPE = (1, 8, 8)


class Quadrants:
    """The victim: features are the quadrants' means, logits twenty times what they exceed their mean by."""

    def __init__(self) -> None:
        self.seen: list[Images] = []

    def __call__(self, images: Images) -> Observed:
        self.seen.append(images.copy())
        pixels = images / 255 if images.dtype == np.uint8 else images
        features = pixels.reshape(-1, 2, 4, 2, 4).mean((2, 4)).reshape(-1, 4)
        return Observed(features, 20 * (features - features.mean(1, keepdims=True)))


class Open:
    """No defence."""

    def answer(self, queries: Queries) -> Answers:
        count = len(queries)
        return Answers(softmax(queries.logits), np.zeros(count, bool), np.full(count, np.nan))


@pytest.fixture
def victim() -> Quadrants:
    return Quadrants()


@pytest.fixture
def undefended() -> Open:
    return Open()


@pytest.fixture
def noise() -> Callable[[int, int], Images]:
    """Images whose quadrants differ in brightness."""

    def make(count: int, seed: int) -> Images:
        rng = np.random.default_rng(seed)
        level = rng.uniform(0, 200, (count, 1, 2, 1, 2, 1))
        pixels = level + rng.uniform(0, 55, (count, 1, 2, 4, 2, 4))
        return pixels.reshape(count, *SHAPE).astype(np.uint8)

    return make


@pytest.fixture
def fresh() -> Callable[[int], nn.Module]:
    def make(seed: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return PixelInput(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (0.5,), (0.3,))

    return make


@pytest.fixture
def agreement(noise: Callable[[int, int], Images]) -> Callable[[nn.Module], float]:
    """The share of held-out images on which a clone names the victim's class."""
    images = noise(500, 999)
    expected = Quadrants()(images).logits.argmax(1)

    def measure(clone: nn.Module) -> float:
        with torch.no_grad():
            found = clone(torch.from_numpy(images).float() / 255).argmax(1).numpy()
        return float((found == expected).mean())

    return measure
