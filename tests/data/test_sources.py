"""Names, options, subsets and splits of whole data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.data.images import ImageData, TensorImages, mean_and_std
from stillroom.data.options import DataOptions
from stillroom.data.sources import data_root, load_data
from stillroom.errors import InputError

WriteIdx = Callable[..., Path]


def counts(data: ImageData) -> dict[str, list[int]]:
    return {split: about["per_class"] for split, about in data.describe()["splits"].items()}


def test_digits_are_the_default_and_split_four_to_one() -> None:
    data = load_data(DataOptions())
    assert (data.shape, data.classes, data.augment) == ((1, 8, 8), tuple("0123456789"), "crop")
    assert (len(data.train), len(data.test), data.holdout) == (1438, 359, None)
    assert data.train.pixels.max() == 255
    for kept, aside in zip(*counts(data).values(), strict=True):
        assert abs(aside - 0.2 * (kept + aside)) <= 0.5


def test_the_test_set_never_depends_on_options_of_the_training_set() -> None:
    first = load_data(DataOptions())
    other = load_data(DataOptions(seed=9, fraction=0.3, holdout=0.2, augment="none"))
    assert torch.equal(first.test.pixels, other.test.pixels)
    assert (first.mean, first.std) == (other.mean, other.std)


@settings(deadline=None, max_examples=10)
@given(fraction=st.floats(0.01, 1.0), holdout=st.floats(0.1, 0.9), seed=st.integers(0, 99))
def test_fraction_and_holdout_keep_the_balance_of_classes(fraction: float, holdout: float, seed: int) -> None:
    whole = counts(load_data(DataOptions()))["train"]
    data = load_data(DataOptions(fraction=fraction, seed=seed))
    subset = counts(data)["train"]
    assert all(n >= 1 and (abs(n - fraction * full) <= 0.5 or n == 1) for n, full in zip(subset, whole, strict=True))
    if sum(round(holdout * n - 0.01) for n in subset if n > 1):
        split = counts(load_data(DataOptions(fraction=fraction, holdout=holdout, seed=seed)))
        for kept, aside, drawn in zip(split["train"], split["holdout"], subset, strict=True):
            assert kept + aside == drawn
            assert kept >= 1
            assert abs(aside - holdout * drawn) <= 0.5 or kept == 1


def test_few_label_sets_have_exactly_the_images_asked_for_and_grow_with_the_number() -> None:
    few, more = (load_data(DataOptions(per_class=count)) for count in (3, 12))
    assert counts(few)["train"] == [3] * 10
    assert counts(more)["train"] == [12] * 10
    known = {image.numpy().tobytes() for image in more.train.pixels}
    assert all(image.numpy().tobytes() in known for image in few.train.pixels)


def test_holdout_is_taken_out_of_the_few_labels() -> None:
    assert counts(load_data(DataOptions(per_class=10, holdout=0.2)))["holdout"] == [2] * 10
    assert counts(load_data(DataOptions(per_class=10, holdout=0.2)))["train"] == [8] * 10


def test_seeds_draw_different_subsets() -> None:
    first, again, other = (load_data(DataOptions(per_class=20, seed=seed)).train for seed in (0, 0, 1))
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, r"data\.fraction is 0\.0"),
        ({"fraction": 1.5}, r"data\.fraction is 1\.5"),
        ({"fraction": float("nan")}, r"data\.fraction is nan"),
        ({"per_class": 0}, r"data\.per_class is 0"),
        ({"per_class": 5, "fraction": 0.5}, "give one of them"),
        ({"holdout": 1.0}, r"data\.holdout is 1\.0"),
        ({"image_size": 0}, r"data\.image_size is 0"),
        ({"seed": -1}, r"data\.seed is -1"),
        ({"views": -1}, r"data\.views is -1"),
        ({"augment": "crop-flp"}, r"unknown data\.augment 'crop-flp'; did you mean 'crop-flip'\?"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "minst"}, r"unknown data set 'minst'; did you mean 'mnist'\?"),
        ({"name": "cifar-10"}, r"unknown data set 'cifar-10'; did you mean 'cifar10"),
        ({"name": "digits:here"}, "digits comes with scikit-learn and takes no path"),
        ({"name": "folder"}, "folder needs a folder: folder:PATH"),
        ({"per_class": 1000}, r"data\.per_class is 1000, but class '8' has only 139 training images"),
        ({"per_class": 2, "holdout": 0.1}, r"data\.holdout 0\.1 of 20 training images sets none aside"),
    ],
)
def test_what_no_data_set_can_honour_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_data(DataOptions(**options))
    assert "\n" not in str(error.value)


def test_the_root_of_data_sets_is_the_environments_else_the_folder_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("STILLROOM_DATA", raising=False)
    assert data_root() is None
    with pytest.raises(InputError, match=r"neither STILLROOM_DATA nor \.\./shared/data is there.*mnist:PATH"):
        load_data(DataOptions(name="mnist"))
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert data_root() == Path("../shared/data")
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path / "elsewhere"))
    assert data_root() == tmp_path / "elsewhere"
    with pytest.raises(InputError, match=r"no data set 'cifar10' at \S*elsewhere/cifar10"):
        load_data(DataOptions(name="cifar10"))


def test_named_sets_are_found_in_the_root(write_idx: WriteIdx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fashion-mnist").mkdir()
    write_idx("train-", list(range(10)) * 5, tmp_path / "fashion-mnist")
    monkeypatch.setenv("STILLROOM_DATA", str(tmp_path))
    data = load_data(DataOptions(name="fashion-mnist"))
    assert (data.classes[9], data.augment) == ("ankle boot", "crop-flip")


def test_sets_held_in_memory_are_resized_too() -> None:
    data = load_data(DataOptions(image_size=12))
    assert data.shape == (1, 12, 12)
    small = load_data(DataOptions())
    means = [images.pixels.float().mean((1, 2, 3)) for images in (data.train, small.train)]
    assert float((means[0] - means[1]).abs().max()) < 12  # the same pictures, enlarged


def test_statistics_are_those_of_all_training_pixels() -> None:
    data = load_data(DataOptions())
    unit = data.train.pixels.double() / 255
    assert data.mean == pytest.approx([float(unit.mean())])
    assert data.std == pytest.approx([float(unit.std(correction=0))])


def test_a_channel_without_variation_is_refused() -> None:
    pixels = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    pixels[:, :2] = torch.randint(256, (4, 2, 2, 2), dtype=torch.uint8)
    with pytest.raises(InputError, match="one and the same value"):
        mean_and_std(TensorImages(pixels, torch.zeros(4, dtype=torch.int64)))
