"""One group of networks of the data set: which images they are shown, how they are trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stillroom.data.split import random_stream
from stillroom.distillation.translation.blocks import PLANES, BlockNet
from stillroom.distillation.translation.many import State, images_for, part, sgd, stack, train
from stillroom.errors import InputError

__all__ = ["Job", "PairOptions", "Split", "batches", "orders", "train_group"]

Split = Literal["train", "validation"]

# Purposes of the random streams of one network.
_LARGE, _SMALL = 0, 1


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """How many networks the data set is made of, and how each is trained.

    The paper trains 300,000 pairs and 100 validation triples of 10 epochs on all 60,000 images.

    Args:
        count: Pairs to train the translator on.
        validation: Networks whose blocks are translated to judge it; none of them is among the pairs.
        epochs: Epochs of each network, and again of its small block.
        images: Training images a network is shown in an epoch, drawn anew; all when not given.
        batch_size: Images per step.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        flip: Mirror every other image from left to right; digits too, as the released code does.
        planes: Channels of the blocks, even.
        group: Networks trained as one computation.
        folder: Where the pairs lie; those that are there already are taken. ``out``/pairs when not given.

    Raises:
        InputError: A value is out of its range.
    """

    count: int = 96
    validation: int = 20
    epochs: int = 10
    images: int | None = None
    batch_size: int = 32
    lr: float = 0.01
    momentum: float = 0.9
    flip: bool = True
    planes: int = PLANES
    group: int = 4
    folder: str | None = None

    def __post_init__(self) -> None:
        for name in ("count", "validation", "epochs", "batch_size", "group"):
            if getattr(self, name) < 1:
                raise InputError(f"pairs.{name} is {getattr(self, name)}; it must be at least 1")
        if self.images is not None and self.images < 2:
            raise InputError(f"pairs.images is {self.images}; it must be at least 2")
        if not 0 < self.lr < math.inf:
            raise InputError(f"pairs.lr is {self.lr}; it must be positive and finite")
        if not 0 <= self.momentum < 1:
            raise InputError(f"pairs.momentum is {self.momentum}; it must be at least 0 and below 1")
        if self.planes < 2 or self.planes % 2:
            raise InputError(f"pairs.planes is {self.planes}; it must be even and at least 2")


@dataclass(frozen=True)
class Job:
    """What a group of networks is trained on, and how."""

    pixels: Tensor
    target: Tensor
    classes: int
    options: PairOptions
    seed: int
    device: torch.device


def orders(
    key: Sequence[int], count: int, options: PairOptions, epochs: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, step by step, which images a network is shown and which of them are mirrored.

    Args:
        key: What the random numbers depend on; the epoch is added.
        count: Images there are.
        options: Images an epoch, batch size, mirroring.
        epochs: Epochs; endless when not given.

    Shapes:
        Yields [B], int64, and [B], bool.
    """
    epoch = 0
    while epochs is None or epoch < epochs:
        generator = random_stream(*key, epoch)
        order = torch.randperm(count, generator=generator)[: options.images]
        mirrored = torch.rand(len(order), generator=generator) < (0.5 if options.flip else 0.0)
        yield from zip(*(torch.split(drawn, options.batch_size) for drawn in (order, mirrored)), strict=True)
        epoch += 1


def batches(
    pixels: Tensor, target: Tensor, streams: Sequence[Iterator[tuple[Tensor, Tensor]]], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of several networks, each with its own order.

    Shapes:
        pixels: [N, C, H, W], uint8. target: [N]. Yields [B, G·C, H, W] and [G, B].
    """
    for steps in zip(*streams, strict=True):
        index = torch.stack([order for order, _ in steps], 1)  # [B, G]
        mirrored = torch.stack([flags for _, flags in steps], 1)
        yield images_for(pixels[index].to(device), mirrored.to(device)), target[index.t()].to(device)


def train_group(job: Job, split: Split, number: int) -> State:
    """Train one group of networks, then a small block in the place of each large one.

    A network's initial weights and images depend on the seed, the split and its index only; its weights depend on its
    neighbours by rounding alone.

    Returns:
        ``large.*`` and ``small.*``, for validation with ``begin.*`` and ``last.*`` too; each with a first dimension of
        the group.
    """
    options = job.options
    indices = range(number * options.group, (number + 1) * options.group)
    keys = [(job.seed, 0 if split == "train" else 1, index) for index in indices]
    shape: tuple[int, int, int] = tuple(job.pixels.shape[1:])  # type: ignore[assignment]

    def fresh(size: Literal["large", "small"], purpose: int) -> State:
        networks = []
        with torch.random.fork_rng(devices=[]):
            for key in keys:
                torch.manual_seed(random_stream(*key, purpose).initial_seed())
                networks.append(BlockNet(size, shape=shape, classes=job.classes, planes=options.planes))
        return {name: value.to(job.device) for name, value in stack(networks).items()}

    def steps(purpose: int) -> Iterator[tuple[Tensor, Tensor]]:
        streams = [orders((*key, 2 + purpose), len(job.pixels), options, options.epochs) for key in keys]
        return batches(job.pixels, job.target, streams, job.device)

    state = fresh("large", _LARGE)
    trained = [name for name in state if "running" not in name]
    train(state, sgd(state, trained, lr=options.lr, momentum=options.momentum), steps(_LARGE))
    state = {name: value.detach() for name, value in state.items()}
    frozen = {name: value for name, value in state.items() if not name.startswith("block.")}
    small = {name: value for name, value in fresh("small", _SMALL).items() if name.startswith("block.")}
    train(frozen | small, sgd(small, small, lr=options.lr, momentum=options.momentum), steps(_SMALL))
    kept = {f"large.{name}": value for name, value in part(state, "block.").items()}
    kept |= {f"small.{name}": value for name, value in part(small, "block.").items()}
    return kept if split == "train" else kept | frozen
