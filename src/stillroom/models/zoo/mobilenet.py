"""MobileNetV2 for small images (Sandler et al., MobileNetV2: Inverted Residuals, CVPR 2018)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from stillroom.models.signals import TapPaths
from stillroom.models.zoo._base import ZooNet, conv, init_convolutions, init_linear

__all__ = ["InvertedResidual", "MobileNetV2"]

# Expansion, channels at width 1, blocks and stride of the seven stages: Table 2 of the paper, the second stage at
# stride 1 as is usual for small images.
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_HEAD_CHANNELS = 1280  # not scaled at widths up to 1


class InvertedResidual(nn.Module):
    """1×1 expansion, depthwise 3×3, linear 1×1 projection; the input is added where the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.branch = nn.Sequential(
            conv(in_channels, hidden, 1),  # kept at expansion 1, where it could be left out
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv(hidden, hidden, 3, stride=stride, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            conv(hidden, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x)
        return out + x if self.residual else out


class MobileNetV2(ZooNet):
    """Stem of stride 2, seven stages of inverted residuals, a 1×1 convolution to 1280 channels, a linear classifier.

    ReLU stands where the paper has ReLU6. Taps follow stages 2, 3, 5 and 7; all are linear (signed), so there are no
    pre-activation variants.

    Args:
        width: factor on the channels, at most 1.
        num_classes: number of classes K.
        in_channels: channels of the images.

    Shapes:
        images [B, in_channels, H, W] -> logits [B, K].

    Example:
        >>> MobileNetV2(width=0.5, num_classes=3).tap_paths().stages
        ('stages.1', 'stages.2', 'stages.4', 'stages.6')
    """

    def __init__(self, *, width: float, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        channels = int(32 * width)
        self.stem = nn.Sequential(conv(in_channels, channels, 3, stride=2), nn.BatchNorm2d(channels), nn.ReLU())
        self.stages = nn.Sequential()
        for expansion, base, count, stride in _STAGES:
            stage = nn.Sequential()
            out_channels = int(base * width)
            for index in range(count):
                stage.append(InvertedResidual(channels, out_channels, stride if index == 0 else 1, expansion))
                channels = out_channels
            self.stages.append(stage)
        self.head = nn.Sequential(conv(channels, _HEAD_CHANNELS, 1), nn.BatchNorm2d(_HEAD_CHANNELS), nn.ReLU())
        self.linear = nn.Linear(_HEAD_CHANNELS, num_classes)
        init_convolutions(self)
        init_linear(self.linear)

    def tap_paths(self) -> TapPaths:
        return TapPaths(
            stages=("stages.1", "stages.2", "stages.4", "stages.6"), preact=(), classifier="linear", stem="stem"
        )

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.stages(self.stem(x))
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        return super().forward_head(self.head(features))


mobilenetv2_half = partial(MobileNetV2, width=0.5)
mobilenetv2 = partial(MobileNetV2, width=1.0)
