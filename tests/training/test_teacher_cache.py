"""A cached teacher says what the live one said, survives a killed build and never passes for what it is not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from stillroom.data.batch import Batch
from stillroom.errors import InputError, OutputError
from stillroom.models.signals import Signals
from stillroom.training.teacher import LiveTeacher
from stillroom.training.teacher_cache import CachedTeacher, build_cache, cache_key, cacheable_views

SAMPLES, VIEWS = 10, 3


class Net(nn.Module):
    def __init__(self, pooled: bool = True) -> None:
        super().__init__()
        self.classifier = nn.Linear(12, 4)
        self.pooled = pooled
        self.calls = 0

    def forward(self, images: Tensor) -> Signals:
        self.calls += 1
        features = images.flatten(1)
        return Signals(self.classifier(features), pooled=features if self.pooled else None)


def view_batches(view: int, batch_size: int = 4) -> Iterator[Batch]:
    """All samples of a view, in an order of its own."""
    generator = torch.Generator().manual_seed(view)
    images = torch.randn(SAMPLES, 3, 2, 2, generator=generator)
    for index in torch.randperm(SAMPLES, generator=generator).split(batch_size):
        yield Batch(images[index], index % 4, index)


@pytest.fixture
def live() -> LiveTeacher:
    torch.manual_seed(0)
    return LiveTeacher(Net())


def test_every_view_answers_as_the_live_teacher(live: LiveTeacher, tmp_path: Path) -> None:
    cached = CachedTeacher(build_cache(live, view_batches, SAMPLES, VIEWS, tmp_path / "c"), needs={"pooled"}).to("cpu")
    for epoch in range(1, 2 * VIEWS + 1):
        cached.start_epoch(epoch)
        for batch in view_batches((epoch - 1) % VIEWS):
            expected, answer = live.signals(batch), cached.signals(batch)
            torch.testing.assert_close(answer.logits, expected.logits, rtol=1e-6, atol=1e-6)
            assert answer.pooled is not None
            torch.testing.assert_close(answer.pooled, expected.pooled, rtol=0, atol=0)


def test_a_complete_cache_is_not_built_again(live: LiveTeacher, tmp_path: Path) -> None:
    build_cache(live, view_batches, SAMPLES, VIEWS, tmp_path / "c")
    calls = live.model.calls
    build_cache(live, view_batches, SAMPLES, VIEWS, tmp_path / "c")
    assert live.model.calls == calls
    assert not list((tmp_path / "c").glob("*.part"))


def test_progress_counts_every_sample_of_every_view(live: LiveTeacher, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    build_cache(live, view_batches, SAMPLES, VIEWS, tmp_path / "c", lambda done, whole: told.append((done, whole)))
    assert [done for done, _ in told] == [4, 8, 10, 14, 18, 20, 24, 28, 30]
    assert {whole for _, whole in told} == {30}


def test_a_build_that_dies_leaves_no_usable_cache_and_goes_on_where_it_stopped(
    live: LiveTeacher, tmp_path: Path
) -> None:
    def dying(view: int) -> Iterator[Batch]:
        for number, batch in enumerate(view_batches(view)):
            if view == 1 and number == 1:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        build_cache(live, dying, SAMPLES, VIEWS, tmp_path / "c")
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == ["logits-0.npy", "pooled-0.npy"]
    with pytest.raises(InputError, match="no complete teacher cache"):
        CachedTeacher(tmp_path / "c")

    asked: list[int] = []
    build_cache(live, lambda view: asked.append(view) or view_batches(view), SAMPLES, VIEWS, tmp_path / "c")
    assert asked == [1, 2]
    batch = next(view_batches(0))
    torch.testing.assert_close(CachedTeacher(tmp_path / "c").signals(batch).logits, live.signals(batch).logits)


def test_what_a_killed_build_left_lying_is_swept_away_by_the_next(live: LiveTeacher, tmp_path: Path) -> None:
    left_over = tmp_path / "c" / "logits-0.npy.1.part"
    left_over.parent.mkdir()
    left_over.write_bytes(b"half")
    build_cache(live, view_batches, SAMPLES, 1, tmp_path / "c")
    assert not left_over.exists()


def test_a_full_disk_is_said_before_anything_is_mapped(
    live: LiveTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left"):
        build_cache(live, view_batches, SAMPLES, 1, tmp_path / "c")
    assert not list((tmp_path / "c").iterdir())


def test_a_loader_that_drops_samples_is_refused(live: LiveTeacher, tmp_path: Path) -> None:
    def short(view: int) -> Iterator[Batch]:
        return (batch for batch in view_batches(view) if len(batch.index) == 4)

    with pytest.raises(InputError, match="left out 2 of 10 samples"):
        build_cache(live, short, SAMPLES, 1, tmp_path / "c")
    assert not list((tmp_path / "c").iterdir())


def test_a_truncated_table_is_named(live: LiveTeacher, tmp_path: Path) -> None:
    directory = build_cache(live, view_batches, SAMPLES, 1, tmp_path / "c")
    file = directory / "logits-0.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"logits-0\.npy is damaged .*; delete"):
        CachedTeacher(directory)
    (directory / "cache.json").write_text("{")
    with pytest.raises(InputError, match=r"cache\.json is damaged"):
        CachedTeacher(directory)


def test_methods_that_read_maps_are_told_what_the_cache_holds(live: LiveTeacher, tmp_path: Path) -> None:
    directory = build_cache(live, view_batches, SAMPLES, 1, tmp_path / "c")
    with pytest.raises(InputError, match=r"reads the teacher's preact and stages, .* logits and pooled features only"):
        CachedTeacher(directory, needs={"stages", "preact"})


def test_a_teacher_without_pooled_features_serves_logit_methods_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    directory = build_cache(LiveTeacher(Net(pooled=False)), view_batches, SAMPLES, 1, tmp_path / "c")
    assert CachedTeacher(directory).signals(next(view_batches(0))).pooled is None
    with pytest.raises(InputError, match="gave none when the cache was built"):
        CachedTeacher(directory, needs={"pooled"})


def test_lookups_never_write_to_the_files(live: LiveTeacher, tmp_path: Path) -> None:
    directory = build_cache(live, view_batches, SAMPLES, 1, tmp_path / "c")
    before = (directory / "logits-0.npy").read_bytes()
    CachedTeacher(directory).signals(next(view_batches(0))).logits.fill_(7.0)
    assert (directory / "logits-0.npy").read_bytes() == before


def test_turning_to_the_next_view_does_not_compile_the_step_again(live: LiveTeacher, tmp_path: Path) -> None:
    cached = CachedTeacher(build_cache(live, view_batches, SAMPLES, VIEWS, tmp_path / "c")).to("cpu")

    class Task(nn.Module):
        def forward(self, batch: Batch) -> Tensor:
            return cached.signals(batch).logits.sum() + batch.images.sum()

    counter = CompileCounter()
    compiled = torch.compile(Task(), backend=counter, fullgraph=True)
    for epoch in range(1, VIEWS + 1):
        cached.start_epoch(epoch)
        batch = next(view_batches(epoch - 1))
        torch.testing.assert_close(compiled(batch), Task()(batch))
    assert counter.frame_count == 1


def test_every_part_of_what_a_cache_depends_on_changes_its_name(live: LiveTeacher) -> None:
    told = {"data": "d", "views": 1, "augmentation": "none", "seed": 0}
    keys = [cache_key(live, "w", **told)]
    keys.append(cache_key(live, "v", **told))
    keys += [
        cache_key(live, "w", **{**told, name: other}) for name, other in zip(told, ("e", 2, "crop", 1), strict=True)
    ]
    keys.append(cache_key(LiveTeacher(live.model, precision="bf16"), "w", **told))
    keys.append(cache_key(LiveTeacher(live.model, class_map=torch.tensor([1, 0])), "w", **told))
    keys.append(cache_key(LiveTeacher(live.model, renormalise=(torch.ones(3, 1, 1), torch.ones(3, 1, 1))), "w", **told))
    keys.append(cache_key(LiveTeacher(nn.Sequential(live.model)), "w", **told))
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache_key(LiveTeacher(live.model), "w", **told)


def test_fresh_augmentations_cannot_be_cached() -> None:
    assert cacheable_views(0, "none") == 1
    assert cacheable_views(5, "none") == 1
    assert cacheable_views(5, "crop-flip") == 5
    with pytest.raises(InputError, match=r"--data\.views k .* or --data\.augment none"):
        cacheable_views(0, "crop-flip")
