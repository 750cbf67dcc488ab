"""What every network of the zoo is made of: its entry points, the bias-free convolution, the initialisation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from stillroom.models.signals import TapPaths

__all__ = ["ZooNet", "conv", "init_convolutions", "init_linear"]


class ZooNet(nn.Module, ABC):
    """A classifier cut in two at its last map tap: ``forward(x) == forward_head(forward_features(x))``.

    Every tap is the output or the first input of a named submodule that runs once per forward pass, and no operation
    writes into a tapped tensor.
    """

    linear: nn.Linear

    @abstractmethod
    def tap_paths(self) -> TapPaths:
        """Return where the feature maps, their pre-activation variants and the classifier sit."""

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map tap, [B, C, H', W'], of images [B, in_channels, H, W]."""

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits, [B, K], of a last map tap."""
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias whose padding keeps the size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def init_convolutions(net: nn.Module) -> None:
    """Draw convolution weights from N(0, 2 / (k² · C_out)), also of depthwise ones, and set their biases to 0."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_linear(linear: nn.Linear) -> None:
    """Draw the classifier's weights from N(0, 0.01²) and set its bias to 0."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
