"""How long, with which optimiser and at which learning rate: the recipe, its presets and the pure schedules."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from stillroom.errors import InputError

__all__ = ["PRESETS", "Recipe", "default_lr", "learning_rate", "lr_at", "make_optimizer", "warmup_weight"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The training recipe; the defaults are the literature's for CIFAR-100.

    Args:
        epochs: Passes over the training data.
        batch_size: Samples per step and process.
        optimizer: Update rule.
        lr: Learning rate of the first epoch.
        momentum: Momentum of SGD, the first beta of Adam and AdamW.
        nesterov: Nesterov's form of the momentum (SGD only).
        weight_decay: Decay of every trained parameter, biases and batch norm included.
        schedule: How the learning rate falls from epoch to epoch.
        milestones: For multistep, fractions of the epochs after which the rate is multiplied by ``decay``.
        decay: Factor at each milestone.
        clip_norm: Largest norm of all gradients together; nothing is clipped when it is not set.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> recipe = Recipe()
        >>> [round(lr_at(recipe, epoch), 6) for epoch in (1, 150, 151, 240)]
        [0.05, 0.05, 0.005, 5e-05]
    """

    epochs: int = 240
    batch_size: int = 64
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["multistep", "cosine", "constant"] = "multistep"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    decay: float = 0.1
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _require(self.optimizer in ("sgd", "adam", "adamw"), "optimizer", self.optimizer, "sgd, adam or adamw")
        _require(0 < self.lr < math.inf, "lr", self.lr, "positive and finite")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "at least 0 and below 1")
        _require(0 <= self.weight_decay < math.inf, "weight_decay", self.weight_decay, "at least 0 and finite")
        schedules = ("multistep", "cosine", "constant")
        _require(self.schedule in schedules, "schedule", self.schedule, "multistep, cosine or constant")
        rising = list(self.milestones) == sorted(set(self.milestones))
        inside = all(0 < milestone < 1 for milestone in self.milestones)
        _require(rising and inside, "milestones", self.milestones, "rising fractions of the epochs between 0 and 1")
        _require(0 < self.decay <= 1, "decay", self.decay, "above 0 and at most 1")
        if self.clip_norm is not None:
            _require(0 < self.clip_norm < math.inf, "clip_norm", self.clip_norm, "positive and finite")
        if self.nesterov:
            fits = self.optimizer == "sgd" and self.momentum > 0
            _require(fits, "nesterov", self.nesterov, "off unless the optimizer is sgd with a momentum above 0")


def _require(holds: bool, option: str, value: object, expected: str) -> None:
    if not holds:
        raise InputError(f"recipe.{option} is {value!r}; it must be {expected}")


PRESETS: dict[str, Recipe] = {
    # CIFAR-100 recipe of the SimKD, SemCKD, CRD and mdistiller repositories.
    "cifar": Recipe(),
    # SimKD's ImageNet recipe: milestones 30, 60, 90 of 120.
    "imagenet-simkd": Recipe(epochs=120, batch_size=256, lr=0.1, weight_decay=1e-4, milestones=(0.25, 0.5, 0.75)),
    # OKDDip's recipe for CIFAR: milestones 150 and 225 of 300.
    "okddip": Recipe(epochs=300, batch_size=128, lr=0.1, nesterov=True, milestones=(0.5, 0.75)),
    # CA-MKD's and MMKD's recipe for CIFAR-100.
    "camkd": Recipe(nesterov=True),
    # CSD's recipe for CIFAR-10: an epoch is a round of synthesis and student steps.
    "csd": Recipe(epochs=100, batch_size=128, lr=0.1, weight_decay=1e-4, schedule="cosine"),
    # Small data on a CPU, in seconds.
    "quick": Recipe(epochs=25, batch_size=64, lr=0.05, schedule="cosine"),
}


def learning_rate(epoch: int, *, lr: float, milestones: Sequence[int], decay: float) -> float:
    """Return the learning rate of the step schedule: ``lr · decay^{#milestones m with epoch > m}``.

    Args:
        epoch: Counted from 1.
        lr: Rate of the first epoch.
        milestones: Epochs after which the rate falls, rising.
        decay: Factor at each of them.

    Example:
        >>> [learning_rate(epoch, lr=0.1, milestones=(2, 4), decay=0.5) for epoch in (2, 3, 5)]
        [0.1, 0.05, 0.025]
    """
    return lr * decay ** bisect_left(milestones, epoch)


def warmup_weight(epoch: int, warmup_epochs: int) -> float:
    """Return ``min(epoch / warmup_epochs, 1)``, epochs counted from 1; 1 without warm-up.

    Example:
        >>> [warmup_weight(epoch, 20) for epoch in (1, 10, 20, 21)]
        [0.05, 0.5, 1.0, 1.0]
    """
    return min(epoch / warmup_epochs, 1.0) if warmup_epochs > 0 else 1.0


def lr_at(recipe: Recipe, epoch: int) -> float:
    """Return the recipe's learning rate in an epoch (counted from 1); cosine ends one step above 0."""
    if recipe.schedule == "multistep":
        milestones = [max(1, round(fraction * recipe.epochs)) for fraction in recipe.milestones]
        return learning_rate(epoch, lr=recipe.lr, milestones=milestones, decay=recipe.decay)
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / recipe.epochs))
    return recipe.lr


def default_lr(student: str) -> float:
    """Return the literature's SGD learning rate for a student: 0.01 for MobileNetV2 and ShuffleNet, else 0.05.

    Example:
        >>> default_lr("resnet8x4"), default_lr("timm:mobilenetv2_100"), default_lr("shufflenet_v2")
        (0.05, 0.01, 0.01)
    """
    name = student.lower().replace("_", "")
    return 0.01 if "mobilenetv2" in name or "shufflenet" in name else 0.05


def make_optimizer(
    recipe: Recipe,
    parameters: Iterable[nn.Parameter],
    *,
    undecayed: Collection[nn.Parameter] = (),
    fused: bool = False,
) -> Optimizer:
    """Return the recipe's optimiser over those of ``parameters`` that require a gradient.

    Args:
        recipe: Names the rule and its numbers.
        parameters: What may be trained.
        undecayed: Those among them that weight decay does not reach.
        fused: Use torch's fused kernels (CPU and CUDA; on a CPU three to four times faster than its default).

    Raises:
        InputError: None does.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise InputError("there is nothing to train: no parameter of the task requires a gradient")
    exempt = {id(parameter) for parameter in undecayed}
    groups: list[dict[str, Any]] = [{"params": [p for p in trained if id(p) not in exempt]}]
    if exempt:
        groups.append({"params": [p for p in trained if id(p) in exempt], "weight_decay": 0.0})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    adam = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), weight_decay=recipe.weight_decay, fused=fused)
