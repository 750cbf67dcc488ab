"""VGG with batch normalisation for small images (Simonyan & Zisserman, Very Deep Convolutional Networks, ICLR 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, fx, nn

from stillroom.models.signals import TapPaths
from stillroom.models.zoo._base import ZooNet, init_convolutions, init_linear

__all__ = ["VGG"]

_WIDTHS = (64, 128, 256, 512, 512)


class VGG(ZooNet):
    """Five blocks of 3×3 convolutions (with bias), BN and ReLU; max-pooling between them; a linear classifier.

    Blocks 0 to 2 are followed by a 2×2 max-pooling, block 3 only when both sides of the image have 64 pixels or more:
    images of 32×32 keep 4×4 maps in the last two blocks. The taps are the blocks' outputs before the pooling.

    Args:
        convs: convolutions per block, five numbers.
        num_classes: number of classes K.
        in_channels: channels of the images.

    Shapes:
        images [B, in_channels, H, W], H and W at least 8 -> logits [B, K].

    Example:
        >>> VGG((1, 1, 1, 1, 1), num_classes=3).tap_paths().stages
        ('blocks.1', 'blocks.2', 'blocks.3', 'blocks.4')
    """

    def __init__(self, convs: Sequence[int], *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.convs = tuple(convs)
        self.blocks = nn.ModuleList()
        channels = in_channels
        for width, count in zip(_WIDTHS, convs, strict=True):
            block = nn.Sequential()
            for _ in range(count):
                block.append(nn.Conv2d(channels, width, 3, padding=1))
                block.append(nn.BatchNorm2d(width))
                block.append(nn.ReLU())
                channels = width
            self.blocks.append(block)
        self.linear = nn.Linear(channels, num_classes)
        init_convolutions(self)
        init_linear(self.linear)

    def tap_paths(self) -> TapPaths:
        stages = tuple(f"blocks.{index}" for index in range(1, len(self.convs)))
        preact = tuple(f"{path}.{3 * count - 1}:input" for path, count in zip(stages, self.convs[1:], strict=True))
        return TapPaths(stages=stages, preact=preact, classifier="linear", stem="blocks.0")

    def forward_features(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index < 3:
                x = F.max_pool2d(x, 2)
            elif index == 3:
                x = _halve_large(x)
        return x


@fx.wrap  # a choice by size stays a choice when the network is traced
def _halve_large(x: Tensor) -> Tensor:
    """Pool what was at least 64 pixels wide and high before three poolings."""
    return F.max_pool2d(x, 2) if min(x.shape[-2:]) >= 8 else x


vgg8 = partial(VGG, (1, 1, 1, 1, 1))
vgg11 = partial(VGG, (1, 1, 2, 2, 2))
vgg13 = partial(VGG, (2, 2, 2, 2, 2))
vgg16 = partial(VGG, (2, 2, 3, 3, 3))
vgg19 = partial(VGG, (2, 2, 4, 4, 4))
