"""Batched crop, mirror and normalisation against plain per-image formulations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from stillroom.data.augment import Normaliser, crop, crop_padding, flip
from stillroom.data.split import random_stream


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.sampled_from([1, 3]), st.integers(3, 9), st.integers(3, 9), st.integers(0, 3))
def test_crop_equals_torchvisions_crop_of_each_image(
    seed: int, channels: int, height: int, width: int, pad: int
) -> None:
    generator = random_stream(seed)
    images = torch.randint(256, (6, channels, height, width), generator=generator, dtype=torch.uint8)
    row = torch.randint(6, (4,), generator=generator)
    top, left = (torch.randint(2 * pad + 1, (4,), generator=generator) for _ in range(2))
    batched = crop(F.pad(images, (pad,) * 4), row, top, left, (height, width))
    for cut, i, y, x in zip(batched, row.tolist(), top.tolist(), left.tolist(), strict=True):
        assert torch.equal(cut, tv.crop(images[i], y - pad, x - pad, height, width))  # fills with zeros outside


def test_flip_mirrors_the_marked_images_only() -> None:
    images = torch.randint(256, (5, 3, 4, 6), generator=random_stream(0), dtype=torch.uint8)
    mirrored = torch.tensor([True, False, True, False, False])
    for before, after, mark in zip(images, flip(images, mirrored), mirrored.tolist(), strict=True):
        assert torch.equal(after, tv.horizontal_flip(before) if mark else before)


def test_normalisation_agrees_with_torchvision() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), list(mean), list(std))
    torch.testing.assert_close(Normaliser(mean, std)(images), expected, rtol=1e-5, atol=1e-6)


def test_padding_follows_the_cifar_recipe_and_shrinks_with_the_image() -> None:
    assert {side: crop_padding(side) for side in (3, 8, 28, 32, 64, 224)} == {3: 1, 8: 1, 28: 2, 32: 4, 64: 8, 224: 28}
