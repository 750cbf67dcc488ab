"""Wide residual networks with pre-activation (Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from stillroom.models.signals import TapPaths
from stillroom.models.zoo._base import ZooNet, conv, init_convolutions

__all__ = ["PreActivationBlock", "WideResNet"]


class PreActivationBlock(nn.Module):
    """conv(ReLU(BN(conv(a)))) + shortcut with a = ReLU(BN(x)); the shortcut is x, or a 1×1 convolution of a."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = conv(out_channels, out_channels, 3)
        self.shortcut = None if in_channels == out_channels else conv(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(ZooNet):
    """WRN-d-k: stem convolution, three stages of pre-activation blocks, a last BN and ReLU, a linear classifier.

    The stage taps are the raw sums, signed and not normalised; their pre-activation variants are the batch
    normalisation that reads them next (the following stage's first, the last one's own).

    Args:
        depth: d = 6n + 4 layers.
        width: factor k on the widths 16, 32, 64.
        num_classes: number of classes K.
        in_channels: channels of the images.

    Shapes:
        images [B, in_channels, H, W] -> logits [B, K].

    Example:
        >>> WideResNet(depth=10, width=1, num_classes=3).tap_paths().preact
        ('stages.1.0.bn1', 'stages.2.0.bn1', 'bn')
    """

    def __init__(self, *, depth: int, width: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv = conv(in_channels, 16, 3)
        self.stages = nn.Sequential()
        channels = 16
        for out_channels, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            stage = nn.Sequential()
            for index in range((depth - 4) // 6):
                stage.append(PreActivationBlock(channels, out_channels, stride if index == 0 else 1))
                channels = out_channels
            self.stages.append(stage)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(channels, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.linear.bias)

    def tap_paths(self) -> TapPaths:
        return TapPaths(
            stages=("stages.0", "stages.1", "stages.2"),
            preact=("stages.1.0.bn1", "stages.2.0.bn1", "bn"),
            classifier="linear",
            stem="conv",
        )

    def forward_features(self, x: Tensor) -> Tensor:
        features: Tensor = self.stages(self.conv(x))
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        return super().forward_head(self.relu(self.bn(features)))


wrn_16_1 = partial(WideResNet, depth=16, width=1)
wrn_16_2 = partial(WideResNet, depth=16, width=2)
wrn_40_1 = partial(WideResNet, depth=40, width=1)
wrn_40_2 = partial(WideResNet, depth=40, width=2)
