"""Training of a translator on pairs of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stillroom.data.batch import Batch
from stillroom.data.split import random_stream
from stillroom.distillation.translation.evaluate import translated_blocks, with_blocks
from stillroom.distillation.translation.kt import KT, translation_loss
from stillroom.distillation.translation.layout import from_tokens, to_tokens
from stillroom.distillation.translation.many import accuracies
from stillroom.distillation.translation.pairs import Pairs
from stillroom.distillation.translation.translator import Translator
from stillroom.training.loop import fit
from stillroom.training.recipe import Recipe
from stillroom.training.run import RunDirectory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["PairLoader", "TranslationTask", "train_translator"]

_ORDER = 9  # purpose of the random stream of the order; the networks' are below


class PairLoader:
    """Batches of pairs: tokens of large blocks as ``images``, those of small blocks as ``target``.

    The order depends on (seed, epoch) only; the last batch may be smaller.

    Args:
        large: Tokens of the large blocks.
        small: Tokens of the small blocks.
        batch_size: Pairs per step.
        seed: Seed of the order.

    Shapes:
        large: [N, 2·P², 9]. small: [N, P², 9].

    Example:
        >>> loader = PairLoader(torch.zeros(5, 72, 9), torch.zeros(5, 36, 9), batch_size=3, seed=0)
        >>> [len(batch.images) for batch in loader.epoch(1)]
        [3, 2]
    """

    def __init__(self, large: Tensor, small: Tensor, *, batch_size: int, seed: int) -> None:
        self.large, self.small, self.batch_size, self.seed = large, small, batch_size, seed

    def __len__(self) -> int:
        """Count the steps of an epoch."""
        return -(-len(self.large) // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch ``number`` (counted from 1), from step ``start`` on, always the same ones."""
        order = torch.randperm(len(self.large), generator=random_stream(self.seed, _ORDER, number))
        for index in torch.split(order, self.batch_size)[start:]:
            yield Batch(self.large[index], self.small[index], index)


class TranslationTask(nn.Module):
    """A translator that learns from pairs, and the best weights so far.

    Args:
        translator: Trained in place.
        method: Its augmentation is used.
    """

    def __init__(self, translator: Translator, method: KT) -> None:
        super().__init__()
        self.translator = translator
        self.method = method
        self.epoch = 0
        self.best: dict[str, Any] | None = None  # epoch, accuracy and weights

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of one batch of augmented pairs."""
        inputs, targets = self.method.augment(batch.images, batch.target)
        return {"loss": translation_loss(from_tokens(self.translator(inputs)), from_tokens(targets))}

    def predict(self, images: Tensor) -> Tensor:
        """Return the tokens of small blocks from those of large ones."""
        tokens: Tensor = self.translator(images)
        return tokens

    def start_epoch(self, epoch: int) -> None:
        """Be told the epoch, by which the best one is named."""
        self.epoch = epoch

    def remember(self, accuracy: float) -> None:
        """Keep the weights if they are the best so far."""
        if self.best is None or accuracy > self.best["accuracy"]:
            weights = {name: value.detach().clone() for name, value in self.translator.state_dict().items()}
            self.best = {"epoch": self.epoch, "accuracy": accuracy, "weights": weights}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the best weights for a checkpoint."""
        return {"best": self.best}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`get_extra_state` returned."""
        self.best = state["best"]


def train_translator(
    pairs: Pairs,
    method: KT,
    recipe: Recipe,
    *,
    seed: int,
    run: RunDirectory,
    fabric: Fabric,
    held_out: tuple[Tensor, Tensor] | None,
    group: int,
    eval_every: int = 1,
    checkpoint_every: int | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> tuple[Translator, list[dict[str, Any]], dict[str, Any]]:
    """Train a translator and return it with its history and which epoch it is from.

    Args:
        pairs: What to learn from.
        method: Sizes of the translator, augmentation.
        recipe: Epochs, optimiser and learning rates; the paper's is Adam at 1e-3 with a cosine.
        seed: Seed of initial weights, order, dropout and augmentation.
        run: Where metrics and checkpoints go.
        fabric: Where to train.
        held_out: Training images [N, C, H, W] and classes [N] no network of the data set has seen. With them the epoch
            is kept whose translations of the validation blocks are the most accurate; without, the last.
        group: Networks evaluated together.
        eval_every: Epochs from one evaluation to the next.
        checkpoint_every: Steps between checkpoints within an epoch.
        resume: Continue from the newest checkpoint.
        show_progress: Whether to show progress on standard error.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        task = TranslationTask(method.build(pairs.large[0].shape[2]), method).to(fabric.device)
    loader = PairLoader(
        to_tokens(*pairs.large),
        to_tokens(*pairs.small),
        batch_size=recipe.batch_size,
        seed=seed,
    )
    evaluate = None if held_out is None else _selection(pairs, held_out, group)
    history = fit(
        task,
        loader,
        recipe,
        seed=seed,
        run=run,
        fabric=fabric,
        evaluate=evaluate,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every,
        resume=resume,
        label="translator",
        show_progress=show_progress,
    )
    kept = {"epoch": recipe.epochs, "held_out_accuracy": None}
    if task.best is not None:
        task.translator.load_state_dict(task.best["weights"])
        kept = {"epoch": task.best["epoch"], "held_out_accuracy": task.best["accuracy"]}
    return task.translator.eval(), history, kept


def _selection(pairs: Pairs, held_out: tuple[Tensor, Tensor], group: int) -> Callable[[nn.Module], dict[str, float]]:
    """Return the evaluation that chooses the epoch: accuracy of the translated blocks, in percent."""

    def measure(task: nn.Module) -> dict[str, float]:
        assert isinstance(task, TranslationTask)
        blocks = translated_blocks(task.translator, pairs.networks)
        accuracy = 100 * accuracies(with_blocks(pairs.networks, blocks), *held_out, group=group).mean().item()
        task.remember(accuracy)
        return {"translated_accuracy": accuracy}

    return measure
