"""Translation over several seeds: what translated blocks are worth beside others, as a bench sets them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillroom.data.options import DataOptions
from stillroom.distillation.translation.kt import KT
from stillroom.distillation.translation.translate import DATA, METHOD, translate
from stillroom.hyperparameters import method_options
from stillroom.training.fabric import Device

__all__ = ["translations"]


def translations(
    seeds: Sequence[int],
    data: DataOptions,
    out: Path,
    *,
    options: Mapping[str, Any],
    device: Device,
    jobs: int,
    show_progress: bool,
) -> dict[str, list[float]]:
    """Translate with several seeds, each in a run directory of its own, and return what every kind of block reached.

    Args:
        seeds: Of all networks and of the translator.
        data: The data set; a tenth of its training images is held out unless it says how many.
        out: Folder of the runs; those that are there are taken up.
        options: Hyperparameters that differ from those of the command line.
        device: Where to train.
        jobs: Processes that train networks.
        show_progress: Whether to show progress on standard error.

    Returns:
        Kind of block -> mean test accuracy (0 to 1) over the validation networks, a seed a value.

    Raises:
        InputError: Something handed over is wrong.
    """
    method = KT(**{**method_options(METHOD), **options})
    data = replace(data, augment="none", holdout=data.holdout or DATA.holdout)
    reached: dict[str, list[float]] = {}
    for seed in seeds:
        place = out / f"kt-seed{seed}"
        done = translate(
            data=data,
            method=method,
            out=place,
            seed=seed,
            device=device,
            jobs=jobs,
            show_progress=show_progress,
            resume=place.is_dir(),
        )
        for block, accuracies in done.result["at_once"].items():
            reached.setdefault(block, []).append(sum(accuracies) / len(accuracies))
    return reached
