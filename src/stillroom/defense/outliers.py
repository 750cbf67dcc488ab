"""Training on labelled images and, beside them, on outliers: what several defences need a network to be taught by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillroom.data.augment import Normaliser
from stillroom.data.batch import Batch
from stillroom.errors import InputError
from stillroom.training.contracts import Loader
from stillroom.training.loop import fit
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Objective", "Training", "train_with_outliers"]

# (logits of the batch, its target, logits of the outliers, their positions) -> terms of the loss, which are summed
Objective = Callable[[Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network of a defence is trained: what is the same for all of them.

    Args:
        recipe: Epochs, optimiser and learning rates.
        mean: Mean of every channel, for pixels in 0..1, as the loader of the labelled images normalises.
        std: Standard deviation likewise.
        seed: Seed of the steps.
        run: Where metrics and checkpoints go; nothing is written without.
        resume: Continue from the newest checkpoint of ``run``.
        fabric: Devices and precision; the best device there is when not given.
        show_progress: Whether to show progress on standard error.
    """

    recipe: Recipe
    mean: Sequence[float]
    std: Sequence[float]
    seed: int
    run: RunDirectory | None = None
    resume: bool = False
    fabric: Fabric | None = None
    show_progress: bool = True


def train_with_outliers(
    model: nn.Module, clean: Loader, outliers: Tensor, objective: Objective, training: Training, *, label: str
) -> list[dict[str, Any]]:
    """Train a network in place; each batch is joined by as many outliers, drawn at random.

    Args:
        model: Trained in place.
        clean: Labelled images.
        outliers: Images of other things.
        objective: Terms of the loss, from the logits and target of the batch, the outliers' logits and positions.
        training: Recipe, normalisation, seed and run.
        label: What is trained, for the progress display.

    Shapes:
        outliers: [N, C, H, W], uint8. The network returns [B, K], or [B, M, K] for M members.

    Returns:
        One record an epoch, see :func:`stillroom.training.loop.fit`.

    Raises:
        InputError: There are no outliers, or they are not 8-bit images.
    """
    if outliers.ndim != 4 or outliers.dtype != torch.uint8 or len(outliers) == 0:
        raise InputError(f"outliers must be 8-bit images [N, C, H, W], not {outliers.dtype} {list(outliers.shape)}")
    task = _Task(model, outliers, objective, training)
    return fit(
        task,
        clean,
        training.recipe,
        seed=training.seed,
        run=training.run,
        resume=training.resume,
        fabric=training.fabric,
        label=label,
        show_progress=training.show_progress,
    )


class _Task(nn.Module):
    """One batch, as many outliers, one forward pass of both (batch norm sees them together), one sum of losses."""

    def __init__(self, model: nn.Module, outliers: Tensor, objective: Objective, training: Training) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.mean, self.std = training.mean, training.std
        self.register_buffer("outliers", outliers, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        size = len(batch.target)
        pool: Tensor = self.outliers  # type: ignore[assignment]
        # From the global generator, which the training seeds and a checkpoint keeps.
        drawn = torch.randint(len(pool), (size,), device=pool.device)
        strange = Normaliser(self.mean, self.std, pool.device)(pool[drawn])
        known, unknown = self.model(torch.cat([batch.images, strange])).split(size)
        parts = self.objective(known, batch.target, unknown, drawn)
        loss = torch.stack(list(parts.values())).sum()
        return {"loss": loss, "output": _single(known).detach()} | {n: value.detach() for n, value in parts.items()}

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits [B, K], the members' mean if there are several."""
        return _single(self.model(images))

    def start_epoch(self, epoch: int) -> None:
        """Nothing changes from epoch to epoch."""


def _single(logits: Tensor) -> Tensor:
    return logits if logits.ndim == 2 else logits.mean(1)
