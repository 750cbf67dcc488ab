"""Run as a script: train, kill with SIGKILL at given steps, resume, and save what each training ended with.

Every training is a forked child, so that torch is imported once. ``argv``: the folder to work in.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import toy

KILLS = {
    "never": [],
    "first": [1],
    "epoch-end": [8],
    "epoch-start": [9],
    "after-checkpoint": [7],
    "mid": [14],
    "thrice": [5, 6, 9],
}
EVALUATION_KILL = "in-evaluation"


def kill_at(last: int) -> object:
    def before_step(step: int) -> None:
        if step == last:
            os.kill(os.getpid(), signal.SIGKILL)

    return before_step


def kill_in_evaluation(task: torch.nn.Module) -> dict[str, float]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def train_in_child(folder: Path, *, kill: int | None = None, resume: bool, **options: object) -> int:
    """Train in a child process and return the signal that ended it."""
    child = os.fork()
    if child == 0:
        task = toy.ToyTask(**({"before_step": kill_at(kill)} if kill else {}))
        history = toy.train(task, folder, resume=resume, checkpoint_every=3, **options)
        torch.save(task.state_dict(), folder / "final.pt")
        (folder / "history.json").write_text(json.dumps(toy.without_times(history)))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main(root: Path) -> None:
    torch.set_num_threads(1)
    signals: dict[str, list[int]] = {}
    for name, kills in KILLS.items():
        ended = [train_in_child(root / name, kill=kill, resume=n > 0) for n, kill in enumerate(kills)]
        signals[name] = [*ended, train_in_child(root / name, resume=bool(kills))]
    ended = [train_in_child(root / EVALUATION_KILL, resume=False, evaluate=kill_in_evaluation)]
    signals[EVALUATION_KILL] = [*ended, train_in_child(root / EVALUATION_KILL, resume=True)]
    (root / "signals.json").write_text(json.dumps(signals))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
