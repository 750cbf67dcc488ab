"""The training loop every task shares: epochs on Lightning Fabric, exact resume, early abort, few host reads."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stillroom.data.batch import Batch
from stillroom.errors import InputError, TrainingDivergedError
from stillroom.files import plain
from stillroom.training import checkpoint
from stillroom.training._sums import EpochSums, not_finite
from stillroom.training.contracts import Loader
from stillroom.training.evaluate import evaluation_mode, to_device
from stillroom.training.fabric import is_plain, make_fabric
from stillroom.training.progress import Progress
from stillroom.training.recipe import Recipe, lr_at, make_optimizer
from stillroom.training.run import RunDirectory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Evaluate", "Step", "check_intervals", "fit", "supervised_step"]

Evaluate = Callable[[nn.Module], dict[str, float]]
Step = Callable[[nn.Module, Optimizer, Any, "Fabric", Recipe], dict[str, Tensor]]

_SECONDS_BETWEEN_READS = 2.0


def supervised_step(
    task: nn.Module, optimizer: Optimizer, batch: Batch, fabric: Fabric, recipe: Recipe
) -> dict[str, Tensor]:
    """Do one ordinary update: forward, backward, clipping if the recipe asks for it, optimiser step.

    Args:
        task: The task as Fabric wrapped it.
        optimizer: Over the task's trainable parameters.
        batch: On the task's device.
        fabric: Does the backward pass.
        recipe: Names the norm to clip to.

    Returns:
        What the task returned.
    """
    parts: dict[str, Tensor] = task(batch)
    fabric.backward(parts["loss"])
    if recipe.clip_norm is not None:
        # Raising on a norm that is not finite would read it on the host in every step.
        fabric.clip_gradients(task, optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return parts


def check_intervals(eval_every: int, checkpoint_every: int | None) -> None:
    """Refuse intervals below 1.

    Raises:
        InputError: One of them is.
    """
    for name, value in (("eval_every", eval_every), ("checkpoint_every", checkpoint_every)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")


def fit(
    task: nn.Module,
    loader: Loader[Any],
    recipe: Recipe,
    *,
    seed: int,
    run: RunDirectory | None = None,
    fabric: Fabric | None = None,
    evaluate: Evaluate | None = None,
    eval_every: int = 1,
    resume: bool = False,
    compile: bool = False,
    checkpoint_every: int | None = None,
    checkpoint_seconds: float = 0.0,
    step: Step = supervised_step,
    undecayed: Collection[nn.Parameter] = (),
    label: str = "",
    unit: str = "images",
    show_progress: bool = True,
    tensorboard: bool = False,
) -> list[dict[str, Any]]:
    """Train a task and return what each epoch measured.

    Random numbers of the steps (dropout, say) come from torch's, NumPy's and Python's global generators, seeded here;
    the caller's states are put back at the end, so the result depends on ``seed`` only. On a CPU a killed training that
    is resumed ends with the same weights bit for bit.

    Args:
        task: A module that fulfils the ``Task`` contract. It is trained in place and left in training mode.
        loader: Training batches, the same ones for the same epoch and step.
        recipe: Epochs, optimiser and learning rates.
        seed: Seed of the steps.
        run: Where metrics and checkpoints go; nothing is written without.
        fabric: Devices and precision; by default the best device there is, in float32.
        evaluate: Measures the task, in evaluation mode and without graph, every ``eval_every`` epochs and at the end.
        eval_every: Epochs from one evaluation to the next.
        resume: Continue from the newest checkpoint of ``run``, or start when there is none.
        compile: Compile the task's forward pass with ``torch.compile``.
        checkpoint_every: Steps from one checkpoint to the next within an epoch; each epoch ends with one anyway.
        checkpoint_seconds: Leave out an epoch's checkpoint that comes sooner after the one before it; epochs may be
            shorter than writing one. The last epoch always ends with one.
        step: One update; methods with another kind of step bring their own.
        undecayed: Parameters that the recipe's weight decay does not reach.
        label: What is trained, for the progress display.
        unit: What a batch's targets are counted as.
        show_progress: Whether to show progress on standard error.
        tensorboard: Also log each epoch into the run's ``tensorboard`` folder.

    Returns:
        One record an epoch: ``epoch``, ``lr``, ``train_loss``, ``train_accuracy`` and the task's parts (means over the
        epoch), what ``evaluate`` returned, ``seconds`` and ``images_per_second`` (or another unit's).

    Raises:
        InputError: Nothing to train or to train on, or a checkpoint that does not fit or is damaged.
        TrainingDivergedError: The loss or a weight is not finite; no checkpoint holds such weights.
        OutputError: A file could not be written; those written before are intact.
    """
    if len(loader) == 0:
        raise InputError("there is nothing to train on: the loader has no batch (fewer samples than the batch size?)")
    check_intervals(eval_every, checkpoint_every)
    if run is None and (resume or checkpoint_every is not None or tensorboard):
        raise InputError("resume, checkpoint_every and tensorboard need a run directory; pass run=...")
    fabric = fabric or make_fabric()
    callers = checkpoint.random_states(fabric.device)
    try:
        _seed(seed + fabric.global_rank)
        training = _Training(task, loader, recipe, seed, run, fabric, step, compile, undecayed, unit)
        training.begin(resume)
        show = show_progress and fabric.is_global_zero
        done = (training.epoch - 1) * len(loader) + training.done
        with Progress(label, recipe.epochs, len(loader), done=done, show=show, unit=unit) as progress:
            writer = run.tensorboard(training.epoch) if run is not None and tensorboard else None
            while training.epoch <= recipe.epochs:
                record = training.one_epoch(progress, checkpoint_every)
                due = record["epoch"] % eval_every == 0 or record["epoch"] == recipe.epochs
                if evaluate is not None and due:
                    with evaluation_mode(task):
                        record |= evaluate(task)
                training.end_epoch(record, checkpoint_seconds)
                progress.epoch(record["epoch"], record, evaluated=due)
                if writer is not None:
                    for name in (name for name, value in record.items() if isinstance(value, float)):
                        writer.add_scalar(name, record[name], record["epoch"])
            if writer is not None:
                writer.close()
        return training.history
    finally:
        checkpoint.restore_random_states(callers, fabric.device)


class _Training:
    """The state of one training: where it stands and everything a checkpoint must hold."""

    def __init__(
        self,
        task: nn.Module,
        loader: Loader[Any],
        recipe: Recipe,
        seed: int,
        run: RunDirectory | None,
        fabric: Fabric,
        step: Step,
        compile: bool,
        undecayed: Collection[nn.Parameter],
        unit: str,
    ) -> None:
        self.task, self.loader, self.recipe, self.run, self.fabric, self.step = task, loader, recipe, run, fabric, step
        # A gradient scaler's unscaling and fused kernels exclude each other when gradients are clipped.
        precision: str = fabric.strategy.precision.precision
        fused = fabric.device.type in ("cpu", "cuda") and precision != "16-mixed"
        optimizer = make_optimizer(recipe, task.parameters(), undecayed=undecayed, fused=fused)
        module = cast(nn.Module, torch.compile(task)) if compile else task
        wrapped, self.optimizer = fabric.setup(module, optimizer)
        # Fabric's wrapper sets hooks in every forward pass (up to 4 % of a small model's step); where it would neither
        # cast nor synchronise anything the module is called directly.
        self.model = module if is_plain(fabric) else wrapped
        self.identity = plain(
            {
                "recipe": asdict(recipe),
                "seed": seed,
                "steps_per_epoch": len(loader),
                "processes": fabric.world_size,
                "precision": precision,
            }
        )
        self.epoch, self.done = 1, 0  # the epoch under way and its steps already done
        self.sums = EpochSums(fabric.device)
        self.seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.pending_random: dict[str, Any] | None = None
        self.unit = unit
        self.saved = time.monotonic()

    def begin(self, resume: bool) -> None:
        """Take up the newest checkpoint, or make sure that none is in the way."""
        if self.run is None:
            return
        if not resume:
            if any(self.run.checkpoints.glob("*.pt")):
                raise InputError(f"{self.run.checkpoints} holds checkpoints already; resume or name another run")
            self.fabric.barrier()
        elif (state := checkpoint.load_newest(self.run.checkpoints, self.identity)) is not None:
            self._load(state)
        self.run.write_history(self.history)

    def one_epoch(self, progress: Progress, checkpoint_every: int | None) -> dict[str, Any]:
        """Do the steps of the epoch that are left and return its record."""
        lr = lr_at(self.recipe, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        if self.done == 0:
            self.task.start_epoch(self.epoch)  # type: ignore[operator]
        started, seen, read = time.monotonic(), self.sums.count, self.done
        next_read = started + _SECONDS_BETWEEN_READS
        for batch in self._batches():
            batch = to_device(batch, self.fabric.device)
            self.sums.add(self.step(self.model, self.optimizer, batch, self.fabric, self.recipe), batch.target)
            self.done += 1
            if (now := time.monotonic()) >= next_read:
                means = self._means(read)
                rate = (self.sums.count - seen) * self.fabric.world_size / (now - started)
                progress.step(self.epoch, self.done, means, rate)
                read, next_read = self.done, time.monotonic() + _SECONDS_BETWEEN_READS
            if checkpoint_every is not None and self.done % checkpoint_every == 0 and self.done < len(self.loader):
                self._means(read)
                self._save(time.monotonic() - started)
        if self.fabric.world_size > 1:
            for buffer in self.task.buffers():  # all processes evaluate the model that will be saved, the first one's
                torch.distributed.broadcast(buffer, 0)
        means = self._means(read, everywhere=True)
        seconds = time.monotonic() - started
        return {
            "epoch": self.epoch,
            "lr": lr,
            **means,
            "seconds": self.seconds + seconds,
            f"{self.unit}_per_second": (self.sums.count - seen) * self.fabric.world_size / max(seconds, 1e-9),
        }

    def end_epoch(self, record: dict[str, Any], checkpoint_seconds: float) -> None:
        """Write the epoch down and turn to the next."""
        self.history.append(plain(record))
        self.epoch, self.done, self.seconds = self.epoch + 1, 0, 0.0
        self.sums = EpochSums(self.fabric.device)
        if self.run is not None:
            if self.epoch > self.recipe.epochs or time.monotonic() - self.saved >= checkpoint_seconds:
                self._save(0.0)
            self.run.append_metrics(record)

    def _batches(self) -> Any:
        batches = iter(self.loader.epoch(self.epoch, self.done))
        if self.pending_random is None:
            return batches
        # A loader may draw from the global generator when its epoch begins; that belongs to the run before the kill.
        first = list(itertools.islice(batches, 1))
        checkpoint.restore_random_states(self.pending_random, self.fabric.device)
        self.pending_random = None
        return itertools.chain(first, batches)

    def _means(self, read: int, *, everywhere: bool = False) -> dict[str, float]:
        """Read the epoch's means so far, named ``train_*``, and stop when the loss is not finite."""
        means = self.sums.means(self.fabric if everywhere else None)
        if (what := not_finite(means)) is not None:
            self._diverged(f"the loss became {what} in epoch {self.epoch} (steps {read + 1} to {self.done})")
        return {f"train_{name}": value for name, value in means.items()}

    def _diverged(self, what: str) -> None:
        mend = f"lower --recipe.lr, now {self.recipe.lr:g}"
        if self.recipe.clip_norm is None:
            mend += ", or set --recipe.clip_norm"
        raise TrainingDivergedError(f"{what}; {mend}")

    def _save(self, seconds: float) -> None:
        finite = torch.stack([parameter.detach().isfinite().all() for parameter in self.task.parameters()]).all()
        if not finite.item():
            self._diverged(f"a weight became nan or infinite at epoch {self.epoch}, step {self.done}")
        own = {"random": checkpoint.random_states(self.fabric.device), "sums": self.sums.state()}
        each = [own]
        if self.fabric.world_size > 1:
            each = [own] * self.fabric.world_size
            torch.distributed.all_gather_object(each, own)
        if self.run is None or not self.run.writes:
            return
        state = {
            "identity": self.identity,
            "epoch": self.epoch,
            "done": self.done,
            "seconds": self.seconds + seconds,
            "history": plain(self.history),
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "each": each,
        }
        checkpoint.save(self.run.checkpoints, state, epoch=self.epoch, step=self.done)
        self.saved = time.monotonic()

    def _load(self, state: dict[str, Any]) -> None:
        own = state["each"][self.fabric.global_rank]
        self.epoch, self.done, self.seconds = state["epoch"], state["done"], state["seconds"]
        self.history = state["history"]
        if self.done > 0:
            self.task.start_epoch(self.epoch)  # type: ignore[operator]
            self.sums.load(own["sums"])
            self.pending_random = own["random"]
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        checkpoint.restore_random_states(own["random"], self.fabric.device)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
