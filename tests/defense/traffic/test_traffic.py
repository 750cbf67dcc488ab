"""Surrogate query sets: their shapes, their order, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stillroom.data.images import TensorImages
from stillroom.defense.traffic import SURROGATES, generated_images, halves, load_traffic, noise_images
from stillroom.errors import InputError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a small digits-dg: ten grey images of one domain, ten in colour of another."""
    folder = tmp_path / "digits-dg"
    folder.mkdir()
    rng = np.random.default_rng(0)
    labels = np.arange(10, dtype=np.uint8)
    for name in ("mnist", "usps", "uci"):
        np.savez(folder / f"{name}.npz", images=rng.integers(0, 256, (10, 32, 32), np.uint8), labels=labels)
    for name in ("mnist_m", "synth"):
        np.savez(folder / f"{name}.npz", images=rng.integers(0, 256, (10, 32, 32, 3), np.uint8), labels=labels)
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    return tmp_path


@settings(deadline=None, max_examples=20)
@given(
    name=st.sampled_from(["noise", "generated"]),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 20), st.integers(1, 20)),
    count=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_images_made_without_data_have_any_shape_and_follow_the_seed(
    name: str, shape: tuple[int, int, int], count: int, seed: int
) -> None:
    first, again = (load_traffic(name, shape, count, seed=seed).images for _ in range(2))
    assert first.shape == (count, *shape)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)


def test_another_seed_makes_other_images() -> None:
    for make in (noise_images, generated_images):
        assert not np.array_equal(make((3, 16, 16), 6, seed=0), make((3, 16, 16), 6, seed=1))


def test_neighbouring_pixels_go_together_in_generated_images_only() -> None:
    def neighbours(images: np.ndarray) -> np.ndarray:
        x = images.astype(float) - images.mean((2, 3), keepdims=True)
        return (x[..., 1:] * x[..., :-1]).mean((1, 2, 3)) / x.var((1, 2, 3))

    assert np.abs(neighbours(noise_images((3, 32, 32), 30))).max() < 0.1
    generated = neighbours(generated_images((3, 32, 32), 30))
    assert (generated > 0.3).mean() > 0.95


def test_no_two_generated_images_are_the_same() -> None:
    images = generated_images((3, 16, 16), 150)
    assert len(np.unique(images.reshape(150, -1), axis=0)) == 150


def test_a_named_domain_comes_alone_and_all_of_them_without_a_name(root: Path) -> None:
    one = load_traffic("digits-dg:synth", (3, 32, 32), 10)
    every = load_traffic("digits-dg", (3, 32, 32), 50)
    assert sorted(one.labels.tolist()) == list(range(10))
    assert np.bincount(every.labels).tolist() == [5] * 10
    assert {image.tobytes() for image in one.images} < {image.tobytes() for image in every.images}


def test_more_images_than_there_are_repeat_none_of_them_pixel_by_pixel(root: Path) -> None:
    few = load_traffic("digits-dg:mnist", (3, 32, 32), 10)
    many = load_traffic("digits-dg:mnist", (3, 32, 32), 35)
    assert np.array_equal(many.images[:10], few.images)
    assert len({image.tobytes() for image in many.images}) == 35
    assert many.labels.tolist() == (few.labels.tolist() * 4)[:35]


def test_fewer_images_are_drawn_without_repeats_and_in_another_order_for_another_seed(root: Path) -> None:
    drawn = [load_traffic("digits-dg", (1, 32, 32), 20, seed=seed).images for seed in (0, 0, 1)]
    assert len({image.tobytes() for image in drawn[0]}) == 20
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def test_images_come_at_the_models_channels_and_size(root: Path) -> None:
    assert load_traffic("digits-dg", (1, 28, 20), 50).images.shape == (50, 1, 28, 20)
    grey = load_traffic("digits-dg:usps", (3, 32, 32), 10).images
    assert np.array_equal(grey[:, 0], grey[:, 2])


def test_any_data_set_can_be_asked_for_and_colours_become_grey(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(5):
            colour = (255, 0, 0) if label == "cat" else (0, 255, 0)
            image = Image.new("RGB", (12, 12), colour)
            image.putpixel((0, 0), (255, 255, 255))  # far from the pixel looked at below
            image.save(tmp_path / label / f"{number}.png")
    traffic = load_traffic(f"folder:{tmp_path}", (1, 6, 6), 8)  # a fifth is set aside for tests
    assert np.array_equal(traffic.images[:, 0, 3, 3], np.where(traffic.labels == 0, 76, 150))


@pytest.mark.parametrize(
    ("name", "shape", "count", "said"),
    [
        ("nose", (3, 8, 8), 1, "unknown data set 'nose'"),
        ("noise:x", (3, 8, 8), 1, "takes nothing after a colon"),
        ("digits-dg:mnits", (3, 8, 8), 1, "did you mean 'mnist'"),
        ("pacs-small", (3, 8, 8), 1, "STILLROOM_DATA"),
        ("noise", (3, 8, 8), 0, "at least one"),
        ("noise", (4, 8, 8), 1, "1 or 3 channels"),
        ("noise", (3, 0, 8), 1, "cannot be made"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(
    root: Path, name: str, shape: tuple[int, int, int], count: int, said: str
) -> None:
    with pytest.raises(InputError, match=said) as error:
        load_traffic(name, shape, count)
    assert "\n" not in str(error.value)


def test_a_damaged_archive_is_named(root: Path) -> None:
    (root / "digits-dg" / "uci.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(InputError, match=r"uci\.npz"):
        load_traffic("digits-dg:uci", (3, 32, 32), 1)


@settings(deadline=None, max_examples=25)
@given(labels=st.lists(st.integers(0, 3), min_size=8, max_size=60), seed=st.integers(0, 5))
def test_halves_are_disjoint_and_balanced_in_every_class(labels: list[int], seed: int) -> None:
    target = torch.tensor(labels)
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    left, right = halves(TensorImages(pixels, target), 4, seed=seed)
    both = torch.cat([left.pixels, right.pixels]).flatten().tolist()
    assert sorted(both) == list(range(len(labels)))
    difference = left.target.bincount(minlength=4) - right.target.bincount(minlength=4)
    assert difference.abs().max() <= 1


def test_the_real_surrogates_are_all_there(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_DATA", str(shared_data))
    for name in SURROGATES:
        traffic = load_traffic(name, (3, 32, 32), 64)
        assert traffic.images.shape == (64, 3, 32, 32)
    labels = load_traffic("pacs-small:sketch", (3, 32, 32), 420).labels
    assert np.bincount(labels).tolist() == [60] * 7
