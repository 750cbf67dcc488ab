"""Train a clone on what the victim answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stillroom.data.batch import Batch
from stillroom.data.images import TensorImages
from stillroom.data.loaders import TrainLoader
from stillroom.data.options import Augment
from stillroom.defense.attacks.transfer import TransferSet
from stillroom.errors import InputError, unknown_name
from stillroom.losses.checks import full_precision
from stillroom.losses.kl import kd_loss
from stillroom.training.fabric import make_fabric
from stillroom.training.loop import fit
from stillroom.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = [
    "CLONE_RECIPE",
    "Measure",
    "Objective",
    "PixelInput",
    "log_answers",
    "mixed_loss",
    "soft_cross_entropy",
    "train_clone",
]

Objective = Literal["soft", "mixed"]
Measure = Callable[[nn.Module], dict[str, float]]  # of the clone, in evaluation mode and without graph

# The recipe of D-ADD's official evaluation attack.
CLONE_RECIPE = Recipe(epochs=30, batch_size=64, lr=0.1, nesterov=True, schedule="cosine")

FLOOR = 1e-12  # of a probability before its logarithm: answers of labels alone hold zeros


class PixelInput(nn.Module):
    """A network that takes pixels in 0..1 and normalises them itself, as an attack works on pixels.

    Args:
        model: Takes normalised images.
        mean: Mean of every channel, for pixels in 0..1.
        std: Standard deviation likewise.

    Shapes:
        Takes [B, C, H, W] in 0..1, returns [B, K].

    Example:
        >>> PixelInput(nn.Flatten(), (0.5,), (0.5,))(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)).tolist()
        [[-1.0, 1.0]]
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of pixels."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits


def log_answers(answers: Tensor) -> Tensor:
    """Return the logarithm of the victim's probabilities [B, K], finite where they are zero."""
    return full_precision(answers).clamp_min(FLOOR).log()


def soft_cross_entropy(student: Tensor, answers: Tensor) -> Tensor:
    """Return the cross-entropy of the victim's answers and the clone's, ``-(1/B) Σ_b Σ_k y[b,k] log ŷ[b,k]``.

    The loss of T. Orekondy, B. Schiele, M. Fritz, "Knockoff Nets: Stealing Functionality of Black-Box Models", CVPR
    2019; with one-hot answers the plain cross-entropy.

    Shapes:
        student: [B, K], logits. answers: [B, K], probabilities. Returns a scalar.

    Example:
        >>> print(f"{soft_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.25, 0.75]])):.4f}")
        0.6931
    """
    return F.cross_entropy(full_precision(student), answers.to(full_precision(student).dtype))


def mixed_loss(student: Tensor, answers: Tensor, *, weight_ce: float = 0.7, temperature: float = 3.0) -> Tensor:
    """Return ``w CE(z, argmax y) + (1 - w) T² KL(softmax(log y / T) ‖ softmax(z / T))``, batch mean.

    The loss the official code of D-ADD (J.-P. Mei et al., AAAI 2025) trains its clones with.

    Args:
        student: Logits z of the clone.
        answers: Probabilities y of the victim; their logarithm is its logits up to a constant.
        weight_ce: w, weight of the cross-entropy with the answered class.
        temperature: T, softens both distributions.

    Shapes:
        student, answers: [B, K]. Returns a scalar.

    Example:
        >>> print(f"{mixed_loss(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]])):.4f}")
        0.4852
    """
    hard = F.cross_entropy(full_precision(student), answers.argmax(1))
    soft = kd_loss(student, log_answers(answers).to(full_precision(student).dtype), temperature=temperature)
    return weight_ce * hard + (1 - weight_ce) * soft


class _CloneTask(nn.Module):
    """The objective of a clone as the training loop takes it: the answers are looked up by the sample's position."""

    def __init__(self, clone: nn.Module, answers: NDArray[np.floating], objective: Objective) -> None:
        super().__init__()
        self.model = clone
        self.objective = soft_cross_entropy if objective == "soft" else mixed_loss
        self.answers: Tensor
        self.register_buffer("answers", torch.from_numpy(np.asarray(answers, np.float32)), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        logits = self.predict(batch.images)
        return {"loss": self.objective(logits, self.answers[batch.index]), "output": logits.detach()}

    def predict(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def start_epoch(self, epoch: int) -> None:
        pass


def train_clone(
    clone: nn.Module,
    transfer: TransferSet,
    *,
    recipe: Recipe = CLONE_RECIPE,
    objective: Objective = "soft",
    augment: Augment = "none",
    seed: int,
    measure: Measure | None = None,
    fabric: Fabric | None = None,
    show_progress: bool = True,
) -> list[dict[str, Any]]:
    """Train a clone on a transfer set, in place, and return a record of every epoch.

    Args:
        clone: Maps pixels in 0..1 to logits, such as :class:`PixelInput`.
        transfer: What the victim was asked and answered, with 8-bit images.
        recipe: Epochs, optimiser and learning rates; the batch size is that of the whole set where this is smaller.
        objective: :func:`soft_cross_entropy` or :func:`mixed_loss`.
        augment: What to do to the images while training.
        seed: Seed of order and augmentation.
        measure: Measures the clone after every epoch; its numbers join the epoch's record.
        fabric: Devices and precision; by default the processor.
        show_progress: Whether to show progress on standard error.

    Raises:
        InputError: There is nothing to train on, or the images are not 8-bit.
        TrainingDivergedError: The loss or a weight is not finite.
    """
    if objective not in get_args(Objective):
        raise unknown_name("objective", objective, get_args(Objective))
    if len(transfer) == 0 or transfer.images.dtype != np.uint8:
        raise InputError(f"{len(transfer)} images of type {transfer.images.dtype} to train on; give 8-bit ones")
    fabric = fabric or make_fabric("cpu")
    images = TensorImages(torch.from_numpy(transfer.images), torch.from_numpy(transfer.answers.argmax(1)))
    recipe = replace(recipe, batch_size=min(recipe.batch_size, len(transfer)))
    identity = ((0.0,) * images.shape[0], (1.0,) * images.shape[0])  # the clone normalises
    loader = TrainLoader(
        images,
        batch_size=recipe.batch_size,
        seed=seed,
        augment=augment,
        mean=identity[0],
        std=identity[1],
        device=fabric.device,
    )
    return fit(
        _CloneTask(clone, transfer.answers, objective),
        loader,
        recipe,
        seed=seed,
        fabric=fabric,
        evaluate=None if measure is None else lambda task: measure(clone),
        label="clone",
        show_progress=show_progress,
    )
