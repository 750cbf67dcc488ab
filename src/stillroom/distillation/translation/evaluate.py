"""What translated blocks are worth: inserted as they are, and trained on from there, beside other ways to start."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stillroom.data.split import random_stream
from stillroom.distillation.translation.blocks import BlockNet, Small
from stillroom.distillation.translation.group import PairOptions, batches, orders
from stillroom.distillation.translation.layout import from_tokens, to_tokens
from stillroom.distillation.translation.many import State, accuracies, images_for, sgd, stack, train
from stillroom.distillation.translation.pairs import Pairs
from stillroom.distillation.translation.translator import Translator
from stillroom.errors import InputError
from stillroom.training.progress import counting

__all__ = ["Comparison", "Flops", "check_steps", "compare", "count_flops", "translated_blocks", "with_blocks"]

# Purposes of the random streams; 0 and 1 are the networks of the data set.
_RANDOM, _STEPS = 2, 3

LARGE, SMALL = "large block", "small block, fully trained"
RANDOM, SKIP, MEAN, TRANSLATED = "random small block", "no block (all weights 0)", "mean of the pairs", "translated"
STARTS = (RANDOM, MEAN, TRANSLATED)
LABELS, DISTILLATION = "labels", "distillation"
LOSSES = (LABELS, DISTILLATION)


@dataclass(frozen=True)
class Comparison:
    """Test accuracies, fractions, of all validation networks.

    ``at_once`` has a row a block, [V]; ``after`` one an arm (where the block starts from, what it learns from),
    [number of steps asked for, V].
    """

    at_once: dict[str, Tensor]
    after: dict[tuple[str, str], Tensor]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one network's step of training and of one translation."""

    step: int
    step_distillation: int
    translation: int


def check_steps(steps: Sequence[int]) -> None:
    """Refuse steps that do not rise from 0.

    Raises:
        InputError: They do not.
    """
    if list(steps) != sorted(set(steps)) or not steps or steps[0] != 0:
        raise InputError(f"steps must rise from 0, such as 0,1,5,20,100, not {','.join(map(str, steps))}")


@torch.no_grad()
def translated_blocks(translator: Translator, networks: Mapping[str, Tensor]) -> State:
    """Return the small blocks [G, ...] that a translator in evaluation mode writes for the networks' large blocks."""
    device = next(translator.parameters()).device
    conv1, conv2 = networks["block.conv1.weight"], networks["block.conv2.weight"]
    written = from_tokens(translator(to_tokens(conv1, conv2).to(device)))
    return _block(*(weight.to(conv1.device) for weight in written))


def with_blocks(networks: Mapping[str, Tensor], blocks: Mapping[str, Tensor]) -> State:
    """Return networks with other blocks between their begin and last."""
    return {name: value for name, value in networks.items() if not name.startswith("block.")} | dict(blocks)


def _block(conv1: Tensor, conv2: Tensor) -> State:
    return {"block.conv1.weight": conv1, "block.conv2.weight": conv2}


def compare(
    translator: Translator,
    pairs: Pairs,
    train_images: tuple[Tensor, Tensor],
    test_images: tuple[Tensor, Tensor],
    *,
    options: PairOptions,
    steps: Sequence[int],
    seed: int,
    device: torch.device,
    show_progress: bool = True,
) -> Comparison:
    """Measure all blocks on the test images, at once and after some steps of training.

    Every arm sees the same images in the same order, with the learning rate of the pairs; begin and last stay as they
    are. An arm that distils learns the logits of the network with the large block and no labels.

    Args:
        translator: In evaluation mode.
        pairs: Its validation networks are used, and the small blocks of the pairs for their mean.
        train_images: Pixels [N, C, H, W] and classes [N] to train on.
        test_images: Likewise, to measure on.
        options: Batch size, learning rate and mirroring of the steps.
        steps: After how many steps to measure; the first is 0.
        seed: Seed of random blocks and of the order.
        device: Where to compute.
        show_progress: Whether to show progress on standard error.
    """
    check_steps(steps)
    networks = {name: value.to(device) for name, value in pairs.networks.items()}
    count = len(networks["last.fc.bias"])
    mean = [weight.mean(0).to(device).repeat(count, 1, 1, 1, 1) for weight in pairs.small]
    blocks = {
        SMALL: {name: value.to(device) for name, value in pairs.trained.items()},
        RANDOM: _random_blocks(count, options, seed, device),
        SKIP: _block(*(torch.zeros_like(weight) for weight in mean)),
        MEAN: _block(*mean),
        TRANSLATED: translated_blocks(translator, networks),
    }
    inserted = {LARGE: networks} | {name: with_blocks(networks, block) for name, block in blocks.items()}
    at_once = {}
    with counting("blocks as they are", len(inserted), show=show_progress) as tell:
        for done, (name, state) in enumerate(inserted.items(), 1):
            at_once[name] = accuracies(state, *test_images, group=options.group)
            tell(done)
    groups = [slice(first, first + options.group) for first in range(0, count, options.group)]
    arms = list(itertools.product(STARTS, LOSSES))
    after: dict[tuple[str, str], Tensor] = {}
    with counting("blocks trained on", len(arms) * len(groups), show=show_progress) as tell:
        for number, (start, loss) in enumerate(arms):
            parts = []
            for done, chosen in enumerate(groups, 1):
                large = {name: value[chosen] for name, value in networks.items()}
                state = with_blocks(large, {name: value[chosen].clone() for name, value in blocks[start].items()})
                optimizer = sgd(state, blocks[start], lr=options.lr, momentum=options.momentum)
                keys = [(seed, _STEPS, index) for index in range(count)[chosen]]
                stream = batches(*train_images, [orders(key, len(train_images[1]), options) for key in keys], device)
                measured = []
                for before, until in itertools.pairwise(steps):
                    teacher = large if loss == DISTILLATION else None
                    train(state, optimizer, itertools.islice(stream, until - before), teacher=teacher)
                    measured.append(accuracies(state, *test_images, group=options.group))
                parts.append(torch.stack(measured) if measured else torch.empty(0, len(keys), dtype=torch.float64))
                tell(number * len(groups) + done)
            after[start, loss] = torch.cat([at_once[start][None], torch.cat(parts, 1)])
    return Comparison(at_once, after)


def _random_blocks(count: int, options: PairOptions, seed: int, device: torch.device) -> State:
    """Return small blocks with torch's initial weights, as every small block of the data set started from some."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_stream(seed, _RANDOM).initial_seed())
        state = stack(Small(options.planes) for _ in range(count))
    return {f"block.{name}": value.to(device) for name, value in state.items()}


def count_flops(translator: Translator, shape: tuple[int, int, int], classes: int, options: PairOptions) -> Flops:
    """Count what a step of training and a translation cost one network, by PyTorch's own counter."""
    large = stack([BlockNet("large", shape=shape, classes=classes, planes=options.planes)])
    small = {f"block.{name}": value for name, value in stack([Small(options.planes)]).items()}
    pixels = torch.zeros(options.batch_size, 1, *shape, dtype=torch.uint8)
    batch = images_for(pixels), torch.zeros(1, options.batch_size, dtype=torch.int64)

    def step(teacher: State | None) -> int:
        state = with_blocks(large, {name: value.clone() for name, value in small.items()})
        optimizer = sgd(state, small, lr=options.lr, momentum=options.momentum)
        with FlopCounterMode(display=False) as counter:
            train(state, optimizer, [batch], teacher=teacher)
        return int(counter.get_total_flops())

    device = next(translator.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        translator(torch.zeros(1, translator.tokens, 9, device=device))
    return Flops(step=step(None), step_distillation=step(large), translation=int(counter.get_total_flops()))
