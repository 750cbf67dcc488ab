"""The CIFAR model zoo: networks for small images, by name.

Any image size from 8×8 up and any number of channels work; every network says where it is tapped (``tap_paths``) and
is cut in two at its last feature map (``forward_features``, ``forward_head``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from stillroom.errors import InputError, unknown_name

if TYPE_CHECKING:
    from stillroom.models.zoo._base import ZooNet

__all__ = ["ZOO", "create", "names"]

_FAMILIES = {
    "resnet": (
        "resnet8",
        "resnet14",
        "resnet20",
        "resnet32",
        "resnet38",
        "resnet44",
        "resnet56",
        "resnet110",
        "resnet116",
        "resnet14x2",
        "resnet38x2",
        "resnet110x2",
        "resnet8x4",
        "resnet14x4",
        "resnet32x4",
        "resnet38x4",
        "resnet20_a",
        "resnet32_a",
        "resnet44_a",
        "resnet56_a",
        "resnet110_a",
        "resnet18_cifar",
        "resnet50_cifar",
    ),
    "wrn": ("wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
    "vgg": ("vgg8", "vgg11", "vgg13", "vgg16", "vgg19"),
    "mobilenet": ("mobilenetv2_half", "mobilenetv2"),
    "shufflenet": ("shufflenet_v1", "shufflenet_v2", "shufflenet_v2_x1_5"),
}

ZOO: dict[str, str] = {
    name: f"stillroom.models.zoo.{family}:{name}" for family, members in _FAMILIES.items() for name in members
}
"""Name of every network -> its builder, as ``module:attribute``."""


def names() -> tuple[str, ...]:
    """Return the names of the networks, family by family."""
    return tuple(ZOO)


def create(name: str, *, num_classes: int, in_channels: int = 3) -> ZooNet:
    """Build a network of the zoo with freshly drawn weights.

    Args:
        name: a key of ``ZOO``.
        num_classes: number of classes K.
        in_channels: channels of the images, 3 for colour and 1 for grey.

    Returns:
        The network; images [B, in_channels, H, W] -> logits [B, K].

    Raises:
        InputError: the name is unknown, or a number is below 1.

    Example:
        >>> import torch
        >>> net = create("resnet8", num_classes=10, in_channels=1)
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if name not in ZOO:
        raise unknown_name("zoo network", name, ZOO)
    if num_classes < 1 or in_channels < 1:
        raise InputError(f"num_classes and in_channels must be at least 1, not {num_classes} and {in_channels}")
    module, attribute = ZOO[name].split(":")
    net: ZooNet = getattr(import_module(module), attribute)(num_classes=num_classes, in_channels=in_channels)
    return net
