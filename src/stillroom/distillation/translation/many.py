"""Many small networks as one computation: their states stacked, their convolutions grouped.

A network of some hundred weights leaves a processor idle most of the time. Four of them side by side, channels last,
take less than half of the time of four one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from stillroom.losses.kl import kd_loss

__all__ = ["State", "accuracies", "begin", "forward", "images_for", "part", "sgd", "stack", "train"]

State = dict[str, Tensor]
"""Parameters and buffers of G networks: the names of :class:`~stillroom.distillation.translation.blocks.BlockNet`, each
tensor with a first dimension of G."""

TEST_BATCH = 500


def stack(networks: Iterable[nn.Module]) -> State:
    """Return the state of networks of one architecture, as copies.

    Example:
        >>> stack([nn.Linear(3, 2), nn.Linear(3, 2)])["weight"].shape
        torch.Size([2, 2, 3])
    """
    states = [network.state_dict() for network in networks]
    # Batch norm's counters serve averages without momentum only.
    names = [name for name in states[0] if not name.endswith("num_batches_tracked")]
    return {name: torch.stack([state[name] for state in states]) for name in names}


def part(state: Mapping[str, Tensor], prefix: str) -> State:
    """Return the entries below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _conv(state: Mapping[str, Tensor], name: str, x: Tensor, padding: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight.flatten(0, 1), padding=padding, groups=weight.shape[0])


def _norm(state: Mapping[str, Tensor], name: str, x: Tensor, training: bool) -> Tensor:
    mean, variance, weight, bias = (
        state[f"{name}.{entry}"].flatten() for entry in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, weight, bias, training)  # views: the statistics are updated in place


def begin(state: Mapping[str, Tensor], images: Tensor, *, training: bool = False) -> Tensor:
    """Return the maps the blocks read, [B, G·P, H, W] from [B, G·C, 2H, 2W]."""
    normed = _norm(state, "begin.bn", _conv(state, "begin.conv", images), training)
    return F.relu(F.max_pool2d(normed, 3, stride=2, padding=1))


def large_block(state: Mapping[str, Tensor], x: Tensor, *, training: bool = False) -> Tensor:
    """Return the maps behind the large blocks, of the shape of ``x`` [B, G·P, H, W]."""
    middle = F.relu(_norm(state, "block.bn1", _conv(state, "block.conv1", x), training))
    return F.relu(x + _norm(state, "block.bn2", _conv(state, "block.conv2", middle), training))


def small_block(state: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the maps behind the small blocks, of the shape of ``x`` [B, G·P, H, W]."""
    return F.relu(x + _conv(state, "block.conv2", F.relu(_conv(state, "block.conv1", x))))


def last(state: Mapping[str, Tensor], x: Tensor, *, training: bool = False) -> Tensor:
    """Return the logits [G, B, K] from maps [B, G·P, H, W]."""
    # Taking every other position first is the same as a stride, and faster in groups.
    x = F.relu(_norm(state, "last.bn", _conv(state, "last.downsample", x[:, :, ::2, ::2], padding=0), training))
    weight, bias = state["last.fc.weight"], state["last.fc.bias"]
    flat = x.reshape(len(x), len(weight), -1).transpose(0, 1)
    return torch.baddbmm(bias[:, None], flat, weight.transpose(1, 2))


def forward(state: Mapping[str, Tensor], images: Tensor, *, training: bool = False) -> Tensor:
    """Return the logits [G, B, K] of whole networks, each for its own images.

    Args:
        state: Those with batch norm in their blocks are large, else small.
        images: As :func:`images_for` makes them.
        training: Normalise by the batch and move the running statistics, in place.

    Shapes:
        images: [B, G·C, H, W], network by network.
    """
    x = begin(state, images, training=training)
    large = "block.bn1.weight" in state
    x = large_block(state, x, training=training) if large else small_block(state, x)
    return last(state, x, training=training)


def images_for(pixels: Tensor, mirrored: Tensor | None = None) -> Tensor:
    """Return images in 0..1, channels last, as the grouped networks read them.

    Args:
        pixels: The images of each network.
        mirrored: Which of them to mirror from left to right.

    Shapes:
        pixels: [B, G, C, H, W], uint8. mirrored: [B, G], bool. Returns [B, G·C, H, W].
    """
    images = pixels.float() / 255
    if mirrored is not None:
        images = torch.where(mirrored[:, :, None, None, None], images.flip(-1), images)
    return images.flatten(1, 2).contiguous(memory_format=torch.channels_last)


def sgd(state: State, trained: Iterable[str], *, lr: float, momentum: float) -> Optimizer:
    """Return an optimiser over some tensors of the networks, which require a gradient from now on."""
    parameters = [state[name].requires_grad_() for name in trained]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, fused=fused)


def train(
    state: Mapping[str, Tensor],
    optimizer: Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    teacher: Mapping[str, Tensor] | None = None,
    temperature: float = 4.0,
) -> None:
    """Train networks in place, one step a batch; they do not touch each other.

    Whole networks are trained with batch norm in training mode. Where the begin requires no gradient, only the small
    block is trained and all else is in evaluation mode.

    Args:
        state: The networks.
        optimizer: As :func:`sgd` returns it.
        batches: Images [B, G·C, H, W] and classes [G, B].
        teacher: Networks with the same begin and a large block, whose logits are learnt instead of the labels.
        temperature: Of the logits that are learnt.
    """
    whole = state["begin.conv.weight"].requires_grad
    for images, target in batches:
        if whole:
            logits = forward(state, images, training=True)
        else:
            with torch.no_grad():
                x = begin(state, images)
                said = None if teacher is None else last(teacher, large_block(teacher, x))
            logits = last(state, small_block(state, x))
        if whole or said is None:
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        else:
            loss = kd_loss(logits.flatten(0, 1), said.flatten(0, 1), temperature=temperature)
        torch.autograd.backward(loss * len(logits))  # each network's own mean over its batch
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def accuracies(state: Mapping[str, Tensor], pixels: Tensor, target: Tensor, *, group: int) -> Tensor:
    """Return each network's accuracy on the same images, in evaluation mode.

    Args:
        state: The networks.
        pixels: The images.
        target: Their classes.
        group: Networks computed together.

    Shapes:
        pixels: [N, C, H, W], uint8. target: [N]. Returns [G], float64, fractions.
    """
    device = state["last.fc.bias"].device
    count = len(state["last.fc.bias"])
    hits = torch.zeros(count, dtype=torch.int64, device=device)
    for some, classes in zip(torch.split(pixels, TEST_BATCH), torch.split(target, TEST_BATCH), strict=True):
        some, classes = some.to(device), classes.to(device)
        for first in range(0, count, group):
            chosen = {name: value[first : first + group] for name, value in state.items()}
            size = len(chosen["last.fc.bias"])
            logits = forward(chosen, images_for(some[:, None].expand(-1, size, -1, -1, -1)))
            hits[first : first + size] += (logits.argmax(2) == classes).sum(1)
    return hits.double().cpu() / len(target)
