"""ShuffleNet V1 and V2 for small images.

Zhang et al., ShuffleNet: An Extremely Efficient CNN for Mobile Devices, CVPR 2018;
Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from stillroom.models.signals import TapPaths
from stillroom.models.zoo._base import ZooNet, conv

__all__ = ["BasicUnitV2", "DownUnitV2", "ShuffleNet", "UnitV1", "unit_v2"]

_STEM_CHANNELS = 24
_UNITS = (4, 8, 4)  # per stage
_GROUPS = 3  # of V1's 1×1 convolutions


def _conv_bn(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [conv(in_channels, out_channels, kernel, stride=stride, groups=groups), nn.BatchNorm2d(out_channels)]


class UnitV1(nn.Module):
    """Grouped 1×1, channel shuffle, depthwise 3×3, grouped 1×1, around the input; a ReLU at the end.

    At stride 2 the branch is concatenated with the average-pooled input, at stride 1 it is added to the input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        branch_channels = out_channels - in_channels if stride == 2 else out_channels
        hidden = branch_channels // 4
        groups = 1 if in_channels == _STEM_CHANNELS else _GROUPS
        self.branch = nn.Sequential(
            *_conv_bn(in_channels, hidden, 1, groups=groups),
            nn.ReLU(),
            nn.Identity() if groups == 1 else nn.ChannelShuffle(groups),
            *_conv_bn(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.ReLU(),  # Deviation: the paper has none here, the networks of the distillation literature do.
            *_conv_bn(hidden, branch_channels, 1, groups=_GROUPS),
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x)
        out = out + x if self.pool is None else torch.cat((out, self.pool(x)), dim=1)
        result: Tensor = self.relu(out)
        return result


class BasicUnitV2(nn.Module):
    """Half of the channels pass by, half go through 1×1, depthwise 3×3, 1×1; both are shuffled together.

    The last ReLU reads both halves: the half that passes by comes from a ReLU already, so it does not change.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            *_conv_bn(half, half, 1),
            nn.ReLU(),
            *_conv_bn(half, half, 3, groups=half),
            *_conv_bn(half, half, 1),
        )
        self.relu = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        passing, transformed = x.chunk(2, dim=1)
        out: Tensor = self.shuffle(self.relu(torch.cat((passing, self.branch(transformed)), dim=1)))
        return out


class DownUnitV2(nn.Module):
    """Halves the size: two branches read all channels, each gives half of the new ones."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.left = nn.Sequential(
            *_conv_bn(in_channels, in_channels, 3, stride=2, groups=in_channels),
            *_conv_bn(in_channels, half, 1),
        )
        self.right = nn.Sequential(
            *_conv_bn(in_channels, half, 1),
            nn.ReLU(),
            *_conv_bn(half, half, 3, stride=2, groups=half),
            *_conv_bn(half, half, 1),
        )
        self.relu = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shuffle(self.relu(torch.cat((self.left(x), self.right(x)), dim=1)))
        return out


def unit_v2(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the V2 unit for this stride."""
    return DownUnitV2(in_channels, out_channels) if stride == 2 else BasicUnitV2(out_channels)


class ShuffleNet(ZooNet):
    """1×1 stem, three stages of four, eight and four units that start by halving the size, a linear classifier.

    Pre-activation variants are the inputs of a stage's last ReLU. In V2 the shuffle follows that ReLU, so their
    channels stand in another order than those of the stage taps.

    Args:
        unit: the building block, called with (in_channels, out_channels, stride).
        widths: channels of the three stages.
        head_channels: width of a 1×1 convolution before the pooling, or ``None`` for no such convolution.
        num_classes: number of classes K.
        in_channels: channels of the images.

    Shapes:
        images [B, in_channels, H, W] -> logits [B, K].

    Example:
        >>> ShuffleNet(UnitV1, (240, 480, 960), num_classes=3).tap_paths().preact
        ('stages.0.3.relu:input', 'stages.1.7.relu:input', 'stages.2.3.relu:input')
    """

    def __init__(
        self,
        unit: Callable[[int, int, int], nn.Module],
        widths: tuple[int, int, int],
        *,
        head_channels: int | None = None,
        num_classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        channels = _STEM_CHANNELS
        self.stem = nn.Sequential(*_conv_bn(in_channels, channels, 1), nn.ReLU())
        self.stages = nn.Sequential()
        for width, count in zip(widths, _UNITS, strict=True):
            stage = nn.Sequential()
            for index in range(count):
                stage.append(unit(channels, width, 2 if index == 0 else 1))
                channels = width
            self.stages.append(stage)
        if head_channels is None:
            self.head: nn.Module = nn.Identity()
        else:
            self.head = nn.Sequential(*_conv_bn(channels, head_channels, 1), nn.ReLU())
            channels = head_channels
        self.linear = nn.Linear(channels, num_classes)

    def tap_paths(self) -> TapPaths:
        stages = tuple(f"stages.{index}" for index in range(len(_UNITS)))
        preact = tuple(f"{path}.{count - 1}.relu:input" for path, count in zip(stages, _UNITS, strict=True))
        return TapPaths(stages=stages, preact=preact, classifier="linear", stem="stem")

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.stages(self.stem(x))
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        return super().forward_head(self.head(features))


shufflenet_v1 = partial(ShuffleNet, UnitV1, (240, 480, 960))
shufflenet_v2 = partial(ShuffleNet, unit_v2, (116, 232, 464), head_channels=1024)
shufflenet_v2_x1_5 = partial(ShuffleNet, unit_v2, (176, 352, 704), head_channels=1024)
