"""Run under torchrun: train, train with an interruption, and let each process save what it ended with.

``argv``: the folder to work in.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import torch
import toy

from stillroom.training.fabric import make_fabric


class Interrupted(Exception):  # noqa: N818 - not an error
    """Stands for the end of the process: nothing of the training's memory is used afterwards."""


def interrupt(step: int) -> None:
    if step == 6:
        raise Interrupted


def main(root: Path) -> None:
    torch.set_num_threads(1)
    fabric = make_fabric("cpu")
    loader = toy.ToyLoader(batch_size=4, rank=fabric.global_rank, world=fabric.world_size)
    options = {"fabric": fabric, "loader": loader, "checkpoint_every": 3}
    results = {}
    for name in ("linear", "noisy", "resumed"):
        if name == "resumed":
            with contextlib.suppress(Interrupted):
                toy.train(toy.ToyTask(before_step=interrupt), root / name, **options)
        task = toy.ToyTask(noisy=name != "linear")
        history = toy.train(task, root / name, resume=name == "resumed", **options)
        weights = {key: value.tolist() for key, value in task.state_dict().items()}
        results[name] = {"history": toy.without_times(history), "weights": weights}
    (root / f"rank{fabric.global_rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
