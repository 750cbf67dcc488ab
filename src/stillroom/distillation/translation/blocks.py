"""The three-part networks whose middle block is translated: begin, a large or a small block, last."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import InputError

__all__ = ["Begin", "BlockNet", "Large", "Last", "Small"]

PLANES = 6


def _conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def _halved(side: int) -> int:
    """Return the side of a map behind a stride of 2."""
    return (side + 1) // 2


class Begin(nn.Module):
    """The part in front of the block: convolution, batch norm, ReLU, max pooling.

    Args:
        channels: Channels of the images.
        planes: Channels of the block.

    Shapes:
        [B, channels, H, W] -> [B, planes, ⌈H/2⌉, ⌈W/2⌉].
    """

    def __init__(self, channels: int = 1, planes: int = PLANES) -> None:
        super().__init__()
        self.conv = _conv3x3(channels, planes)
        self.bn = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map the block reads."""
        # ReLU and maximum commute; behind the pooling there is a quarter of the work.
        return F.relu(F.max_pool2d(self.bn(self.conv(x)), 3, stride=2, padding=1))


class Large(nn.Module):
    """The large residual block: two 3×3 convolutions with batch norm.

    Args:
        planes: Channels in, between and out.

    Shapes:
        [B, planes, H, W] -> the same.
    """

    def __init__(self, planes: int = PLANES) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv3x3(planes, planes), _conv3x3(planes, planes)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``ReLU(x + BN(conv2(ReLU(BN(conv1(x))))))``."""
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Small(nn.Module):
    """The small residual block: half the channels in between, no batch norm.

    Args:
        planes: Channels in and out; even.

    Shapes:
        [B, planes, H, W] -> the same.
    """

    def __init__(self, planes: int = PLANES) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv3x3(planes, planes // 2), _conv3x3(planes // 2, planes)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``ReLU(x + conv2(ReLU(conv1(x))))``."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class Last(nn.Module):
    """The part behind the block: 1×1 convolution of stride 2, batch norm, ReLU, linear classifier.

    Args:
        positions: Positions of the map behind the convolution.
        classes: Classes to tell apart.
        planes: Channels of the block.

    Shapes:
        [B, planes, H, W] -> [B, classes], with ⌈H/2⌉·⌈W/2⌉ = positions.
    """

    def __init__(self, positions: int = 49, classes: int = 10, planes: int = PLANES) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(planes, 2 * planes, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(2 * planes)
        self.fc = nn.Linear(2 * planes * positions, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.fc(F.relu(self.bn(self.downsample(x))).flatten(1))
        return logits


class BlockNet(nn.Module):
    """A whole network: begin, one block, last.

    W. Sun et al., "Knowledge Translation: A New Pathway for Model Compression", 2024. The two block sizes have 648 and
    324 weights in their convolutions.

    Args:
        size: Which block stands in the middle.
        shape: Channels, height and width of the images.
        classes: Classes to tell apart.
        planes: Channels of the block.

    Shapes:
        [B, *shape] -> [B, classes].

    Raises:
        InputError: The number of planes is odd or below 2.

    Example:
        >>> import torch
        >>> net = BlockNet("small", shape=(1, 28, 28), classes=10)
        >>> tuple(net(torch.zeros(2, 1, 28, 28)).shape), sum(p.numel() for p in net.block.parameters())
        ((2, 10), 324)
    """

    def __init__(
        self,
        size: Literal["large", "small"] = "large",
        *,
        shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        planes: int = PLANES,
    ) -> None:
        super().__init__()
        if planes < 2 or planes % 2:
            raise InputError(f"planes is {planes}; the small block halves it, so it must be even and at least 2")
        channels, height, width = shape
        self.begin = Begin(channels, planes)
        self.block = Large(planes) if size == "large" else Small(planes)
        self.last = Last(_halved(_halved(height)) * _halved(_halved(width)), classes, planes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.last(self.block(self.begin(images)))
        return logits
