"""Corruptions of honest images."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stillroom.defense.corruptions import CORRUPTIONS, corrupt
from stillroom.defense.traffic import generated_images
from stillroom.errors import InputError

IMAGES = generated_images((3, 32, 32), 60, seed=3)[1::3]  # smooth random fields, as photographs are


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_follows_the_seed_keeps_the_shape_and_leaves_its_input_alone(name: str) -> None:
    before = IMAGES.copy()
    found = corrupt(IMAGES, name, 3, seed=1)
    assert found.shape == IMAGES.shape
    assert found.dtype == np.uint8
    assert np.array_equal(found, corrupt(IMAGES, name, 3, seed=1))
    assert np.array_equal(IMAGES, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_changes_the_images_more(name: str) -> None:
    off = [np.abs(corrupt(IMAGES, name, s).astype(float) - IMAGES).mean() for s in (1, 2, 3, 4, 5)]
    assert off[0] > 0.1
    assert all(a < b for a, b in itertools.pairwise(off))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grey_images_of_any_size_are_corrupted_too(name: str) -> None:
    grey = generated_images((1, 9, 14), 4)
    assert corrupt(grey, name, 5).shape == grey.shape


def test_random_corruptions_differ_with_the_seed() -> None:
    for name in ("noise", "rotation", "shift"):
        assert not np.array_equal(corrupt(IMAGES, name, 2, seed=0), corrupt(IMAGES, name, 2, seed=1))


def test_blur_and_contrast_keep_the_brightness() -> None:
    for name in ("blur", "contrast", "resolution"):
        assert abs(corrupt(IMAGES, name, 5).mean() - IMAGES.mean()) < 2


@pytest.mark.parametrize(
    ("name", "severity", "images", "said"),
    [
        ("blurr", 1, IMAGES, "did you mean 'blur'"),
        ("blur", 0, IMAGES, "severity is 0"),
        ("blur", 1, IMAGES / 255, "8-bit"),
        ("blur", 1, IMAGES[0], "N, C, H, W"),
    ],
)
def test_what_cannot_be_corrupted_is_said_in_one_line(name: str, severity: int, images: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        corrupt(images, name, severity)
