"""Put a cache in front of a live teacher: find it by what its answers depend on, or build it once."""

from __future__ import annotations

from pathlib import Path

from stillroom.distillation.training import Setting
from stillroom.models.store import weights_hash
from stillroom.training.progress import counting
from stillroom.training.teacher import LiveTeacher
from stillroom.training.teacher_cache import CachedTeacher, build_cache, cache_key, cacheable_views

__all__ = ["cached_teacher"]


def cached_teacher(live: LiveTeacher, setting: Setting, folder: Path, *, needs: frozenset[str]) -> CachedTeacher:
    """Return the teacher's answers about the training set from a cache in ``folder``, which is built when absent.

    The cache is named by the teacher's weights and precision, the training images, their views and the seed, so runs
    that differ in none of these share it.

    Raises:
        InputError: The augmentation draws new pictures each epoch, or the method reads more than the cache holds.
        OutputError: The cache could not be written.
    """
    data = setting.data
    views = cacheable_views(setting.views, data.augment)
    key = cache_key(
        live,
        weights_hash(live.model),
        data=f"{data.train.fingerprint()} {data.mean} {data.std}",
        views=views,
        augmentation=data.augment,
        seed=setting.seed if data.augment != "none" else 0,
    )
    directory = folder / key
    if setting.fabric.is_global_zero:
        loader = setting.train_loader()
        count = len(data.train)
        with counting("teacher cache", count * views, show=setting.show_progress) as progress:
            build_cache(live, loader.whole_view, count, views, directory, lambda now, _: progress(now))
    setting.fabric.barrier()
    return CachedTeacher(directory, needs=needs).to(setting.fabric.device)
