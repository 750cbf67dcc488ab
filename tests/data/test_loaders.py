"""What a training loop relies on: which samples come when, and with which pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from stillroom.data.batch import Batch
from stillroom.data.images import TensorImages
from stillroom.data.loaders import EvalLoader, TrainLoader
from stillroom.data.split import random_stream
from stillroom.errors import InputError


def images(count: int = 40, side: int = 8, channels: int = 1) -> TensorImages:
    pixels = torch.randint(256, (count, channels, side, side), generator=random_stream(7), dtype=torch.uint8)
    return TensorImages(pixels, torch.arange(count) % 5)


def train(data: TensorImages, **changes: Any) -> TrainLoader:
    channels = data.shape[0]
    options = {"batch_size": 4, "seed": 0, "augment": "crop-flip", "mean": (0.4,) * channels, "std": (0.2,) * channels}
    return TrainLoader(data, **(options | changes))


def by_sample(batches: list[Batch]) -> dict[int, torch.Tensor]:
    return {int(i): picture for batch in batches for i, picture in zip(batch.index, batch.images, strict=True)}


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)
    )


@settings(deadline=None, max_examples=30)
@given(count=st.integers(4, 50), batch_size=st.integers(1, 4), epoch=st.integers(1, 5), seed=st.integers(0, 99))
def test_an_epoch_shows_every_image_once_but_the_last_incomplete_batch(
    count: int, batch_size: int, epoch: int, seed: int
) -> None:
    data = images(count)
    loader = train(data, batch_size=batch_size, seed=seed)
    batches = list(loader.epoch(epoch))
    seen = torch.cat([batch.index for batch in batches]).tolist()
    assert len(batches) == len(loader) == count // batch_size
    assert len(seen) == len(set(seen)) == len(loader) * batch_size
    assert all(torch.equal(batch.target, data.target[batch.index]) for batch in batches)
    assert all(batch.images.dtype == torch.float32 and batch.index.dtype == torch.int64 for batch in batches)


@settings(deadline=None, max_examples=20)
@given(start=st.integers(0, 10), epoch=st.integers(1, 4), views=st.integers(0, 3))
def test_an_epoch_entered_at_a_step_goes_on_as_the_whole_one_does(start: int, epoch: int, views: int) -> None:
    loader = train(images(), views=views)
    assert same(list(loader.epoch(epoch, start)), list(loader.epoch(epoch))[start:])


@settings(deadline=None, max_examples=20)
@given(world_size=st.integers(1, 4), batch_size=st.integers(1, 4), epoch=st.integers(1, 3))
def test_the_processes_share_out_what_one_process_would_see(world_size: int, batch_size: int, epoch: int) -> None:
    data = images(43)
    ranks = [
        list(train(data, batch_size=batch_size, rank=rank, world_size=world_size).epoch(epoch))
        for rank in range(world_size)
    ]
    alone = list(train(data, batch_size=batch_size * world_size).epoch(epoch))
    joined = [Batch(*(torch.cat(part) for part in zip(*step, strict=True))) for step in zip(*ranks, strict=True)]
    assert same(joined, alone)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 13), st.integers(1, 13), st.sampled_from(["crop", "crop-flip", "none"]))
def test_a_sample_has_the_same_pixels_at_every_batch_size(one: int, other: int, augment: str) -> None:
    data = images()
    left, right = (by_sample(list(train(data, batch_size=size, augment=augment).epoch(2))) for size in (one, other))
    for sample in left.keys() & right.keys():
        assert torch.equal(left[sample], right[sample])


def test_epochs_and_seeds_differ_in_order_and_pixels() -> None:
    data = images()
    first, second, other = (list(train(data, seed=seed).epoch(epoch)) for seed, epoch in [(0, 1), (0, 2), (1, 1)])
    for another in (second, other):
        assert not torch.equal(first[0].index, another[0].index)
        mine, theirs = by_sample(first), by_sample(another)
        assert any(not torch.equal(mine[i], theirs[i]) for i in mine.keys() & theirs.keys())


def test_views_repeat_the_pixels_with_their_period_but_not_the_order() -> None:
    loader = train(images(), views=3)
    epochs = {number: list(loader.epoch(number)) for number in (1, 2, 4)}
    pixels = {number: by_sample(batches) for number, batches in epochs.items()}
    assert all(torch.equal(pixels[1][i], pixels[4][i]) for i in range(40))
    assert any(not torch.equal(pixels[1][i], pixels[2][i]) for i in range(40))
    assert not torch.equal(epochs[1][0].index, epochs[4][0].index)
    assert [loader.view(number) for number in (1, 2, 3, 4)] == [0, 1, 2, 0]


@pytest.mark.parametrize("augment", ["crop-flip", "none"])
def test_a_whole_view_holds_every_sample_with_the_pixels_of_its_epochs(augment: str) -> None:
    loader = train(images(42), views=2, augment=augment)
    whole = list(loader.whole_view(1))
    assert torch.cat([batch.index for batch in whole]).tolist() == list(range(42))
    seen, kept = by_sample(list(loader.epoch(4))), by_sample(whole)
    assert len(seen) == 40
    assert all(torch.equal(picture, kept[i]) for i, picture in seen.items())


def test_every_window_and_both_mirrorings_occur_equally_often() -> None:
    side, count = 8, 1800
    ramp = torch.arange(1, side * side + 1, dtype=torch.uint8).view(1, 1, side, side).expand(count, -1, -1, -1)
    loader = TrainLoader(
        TensorImages(ramp, torch.zeros(count, dtype=torch.int64)),
        batch_size=count, seed=3, augment="crop-flip", mean=(0.0,), std=(1 / 255,),
    )  # fmt: skip
    (batch,) = loader.epoch(1)
    kinds, seen = torch.unique(batch.images.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 3 * 3 * 2
    # 100 expected of each of 18 kinds; beyond 5 standard deviations (9.7) the draw is not uniform.
    assert int(seen.min()) > 51
    assert int(seen.max()) < 149


def test_the_crop_of_a_constant_image_is_constant_inside_and_black_at_the_border() -> None:
    data = TensorImages(torch.full((32, 3, 32, 32), 200, dtype=torch.uint8), torch.zeros(32, dtype=torch.int64))
    loader = TrainLoader(data, batch_size=32, seed=0, augment="crop-flip", mean=(0.5,) * 3, std=(0.25,) * 3)
    (batch,) = loader.epoch(1)
    inside, black = (200 / 255 - 0.5) / 0.25, -0.5 / 0.25
    torch.testing.assert_close(batch.images[:, :, 4:-4, 4:-4], torch.full((32, 3, 24, 24), inside))
    values = torch.unique(batch.images)
    torch.testing.assert_close(values, torch.tensor([black, inside]))


def test_no_augmentation_shows_the_images_as_evaluation_does() -> None:
    data = images(channels=3)
    plain = by_sample(list(EvalLoader(data, batch_size=7, mean=(0.4,) * 3, std=(0.2,) * 3)))
    for sample, picture in by_sample(list(train(data, augment="none").epoch(1))).items():
        assert torch.equal(picture, plain[sample])


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 30), batch_size=st.integers(1, 8), start=st.integers(0, 3))
def test_evaluation_shows_every_image_once_in_order(count: int, batch_size: int, start: int) -> None:
    data = images(count)
    loader = EvalLoader(data, batch_size=batch_size, mean=(0.5,), std=(0.5,))
    batches = list(loader)
    assert len(batches) == len(loader)
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(count))
    assert torch.equal(torch.cat([batch.target for batch in batches]), data.target)
    assert same(list(loader.epoch(5, start)), batches[start:])


def test_loading_leaves_the_images_and_the_global_random_state_alone() -> None:
    data = images()
    before, state = data.pixels.clone(), torch.get_rng_state()
    list(train(data).epoch(1))
    list(EvalLoader(data, batch_size=3, mean=(0.5,), std=(0.5,)))
    assert torch.equal(data.pixels, before)
    assert torch.equal(torch.get_rng_state(), state)


class Operations(TorchDispatchMode):
    """Records which tensor operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_step_costs_a_handful_of_operations_and_never_reads_a_tensor_on_the_host() -> None:
    views = {"unfold", "unsqueeze", "detach", "alias"}
    batches = train(images()).epoch(1)
    next(batches)  # the first also prepares the epoch
    with Operations() as recorded:
        next(batches)
    assert [name for name in recorded.names if name not in views] == [
        "index",  # crop
        "flip", "where",  # mirror
        "_to_copy", "mul_", "add_",  # normalise
    ]  # fmt: skip


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(InputError, match=r"40 training images do not fill a batch of 41; lower --recipe\.batch_size"):
        train(images(), batch_size=41)
    with pytest.raises(InputError, match="a batch of 21 on each of 2 processes"):
        train(images(), batch_size=21, world_size=2)
    with pytest.raises(InputError, match="batch_size is 0"):
        train(images(), batch_size=0)


def test_an_unresolved_augmentation_is_refused() -> None:
    with pytest.raises(InputError, match="unknown augmentation 'auto'"):
        train(images(), augment="auto")
