"""Post-activation residual networks for small images (He et al., Deep Residual Learning, CVPR 2016).

Three kinds share one body: the 6n+2-layer CIFAR networks with projection shortcuts (plain, x2 and x4 wide), the same
networks with the paper's parameter-free option-A shortcuts (``*_a``), and ResNet-18/50 with a CIFAR stem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.models.signals import TapPaths
from stillroom.models.zoo._base import ZooNet, conv, init_convolutions

__all__ = ["BasicBlock", "Bottleneck", "PaddedSubsampling", "ResNet", "option_a", "projection"]

Shortcut = Callable[[int, int, int], nn.Module]  # (in_channels, out_channels, stride) -> module


class PaddedSubsampling(nn.Module):
    """Shortcut without parameters (option A): every stride-th pixel, new channels zero, half of them on each side."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, after={self.after}"


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity, or a 1×1 convolution with BN where the shape changes (option B)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels))


def option_a(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity, or subsampling with zero channels where the shape changes (option A)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return PaddedSubsampling(in_channels, out_channels, stride)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions: ReLU(BN(conv(ReLU(BN(conv(x))))) + shortcut(x))."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(in_channels, width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.relu(out + self.shortcut(x))
        return result


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride) and 1×1 convolution, the last four times as wide, around a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(width, width, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        result: Tensor = self.relu(out + self.shortcut(x))
        return result


class ResNet(ZooNet):
    """Residual network with a 3×3 stem of stride 1, stages ``layer1``, ``layer2``, ... and a linear classifier.

    Args:
        block: the residual block.
        blocks: number of blocks per stage.
        widths: width per stage; a stage puts out ``width * block.expansion`` channels. All stages but the first halve
            the size.
        stem_width: channels of the stem.
        shortcut: what a block adds to its branch.
        num_classes: number of classes K.
        in_channels: channels of the images.

    Shapes:
        images [B, in_channels, H, W] -> logits [B, K].

    Example:
        >>> net = ResNet(BasicBlock, [1, 1], [4, 8], 4, num_classes=3)
        >>> net.tap_paths().preact
        ('layer1.0.relu:input', 'layer2.0.relu:input')
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        widths: Sequence[int],
        stem_width: int,
        *,
        shortcut: Shortcut = projection,
        num_classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.conv1 = conv(in_channels, stem_width, 3)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.relu = nn.ReLU()
        channels = stem_width
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            layer = nn.Sequential()
            for index in range(count):
                layer.append(block(channels, width, 2 if stage > 1 and index == 0 else 1, shortcut))
                channels = width * block.expansion
            self.add_module(f"layer{stage}", layer)
        self.linear = nn.Linear(channels, num_classes)
        init_convolutions(self)

    def tap_paths(self) -> TapPaths:
        stages = tuple(f"layer{stage}" for stage in range(1, len(self.blocks) + 1))
        preact = tuple(f"{path}.{count - 1}.relu:input" for path, count in zip(stages, self.blocks, strict=True))
        return TapPaths(stages=stages, preact=preact, classifier="linear", stem="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in range(1, len(self.blocks) + 1):
            x = getattr(self, f"layer{stage}")(x)
        return x


def _cifar(
    *, depth: int, widths: tuple[int, ...], shortcut: Shortcut = projection, num_classes: int, in_channels: int = 3
) -> ResNet:
    """Build the network of 6n+2 layers; ``widths`` is the stem's width followed by the three stages'."""
    blocks = [(depth - 2) // 6] * 3
    return ResNet(
        BasicBlock, blocks, widths[1:], widths[0], shortcut=shortcut, num_classes=num_classes, in_channels=in_channels
    )


_PLAIN = (16, 16, 32, 64)
_DOUBLE = (16, 32, 64, 128)  # the stem stays as narrow as in the plain networks
_FOURFOLD = (32, 64, 128, 256)

resnet8 = partial(_cifar, depth=8, widths=_PLAIN)
resnet14 = partial(_cifar, depth=14, widths=_PLAIN)
resnet20 = partial(_cifar, depth=20, widths=_PLAIN)
resnet32 = partial(_cifar, depth=32, widths=_PLAIN)
resnet38 = partial(_cifar, depth=38, widths=_PLAIN)
resnet44 = partial(_cifar, depth=44, widths=_PLAIN)
resnet56 = partial(_cifar, depth=56, widths=_PLAIN)
resnet110 = partial(_cifar, depth=110, widths=_PLAIN)
resnet116 = partial(_cifar, depth=116, widths=_PLAIN)
resnet14x2 = partial(_cifar, depth=14, widths=_DOUBLE)
resnet38x2 = partial(_cifar, depth=38, widths=_DOUBLE)
resnet110x2 = partial(_cifar, depth=110, widths=_DOUBLE)
resnet8x4 = partial(_cifar, depth=8, widths=_FOURFOLD)
resnet14x4 = partial(_cifar, depth=14, widths=_FOURFOLD)
resnet32x4 = partial(_cifar, depth=32, widths=_FOURFOLD)
resnet38x4 = partial(_cifar, depth=38, widths=_FOURFOLD)

resnet20_a = partial(_cifar, depth=20, widths=_PLAIN, shortcut=option_a)
resnet32_a = partial(_cifar, depth=32, widths=_PLAIN, shortcut=option_a)
resnet44_a = partial(_cifar, depth=44, widths=_PLAIN, shortcut=option_a)
resnet56_a = partial(_cifar, depth=56, widths=_PLAIN, shortcut=option_a)
resnet110_a = partial(_cifar, depth=110, widths=_PLAIN, shortcut=option_a)

resnet18_cifar = partial(ResNet, BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), 64)
resnet50_cifar = partial(ResNet, Bottleneck, (3, 4, 6, 3), (64, 128, 256, 512), 64)
