"""KT: a network that translates the weights of a large block into those of a small one."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from stillroom.cards import Card, Paper, Quirk
from stillroom.distillation.translation.augment import augment
from stillroom.distillation.translation.translator import Translator
from stillroom.errors import InputError, unknown_name
from stillroom.losses.checks import full_precision, not_negative, share

__all__ = ["KT", "translation_loss"]

Augmented = Literal["inputs", "targets", "both"]


def translation_loss(output: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error of both convolutions' weights, each convolution counting half.

    W. Sun et al., "Knowledge Translation: A New Pathway for Model Compression", 2024:
    ``½ (mse(conv1) + mse(conv2))``.

    Args:
        output: Weights of the first and the second convolution as translated.
        target: Those of the trained small block.

    Shapes:
        [B, P/2, P, 3, 3] and [B, P, P/2, 3, 3], both times.

    Returns:
        A scalar.

    Raises:
        InputError: Output and target are of different shapes.

    Example:
        >>> import torch
        >>> zeros = torch.zeros(1, 3, 6, 3, 3), torch.zeros(1, 6, 3, 3, 3)
        >>> translation_loss(zeros, (zeros[0] + 1, zeros[1]))
        tensor(0.5000)
    """
    for name, ours, theirs in zip(("conv1", "conv2"), output, target, strict=True):
        if ours.shape != theirs.shape:
            raise InputError(f"{name} is {list(ours.shape)} in the output and {list(theirs.shape)} in the target")
    pairs = zip(output, target, strict=True)
    errors = [F.mse_loss(full_precision(ours), full_precision(theirs)) for ours, theirs in pairs]
    return 0.5 * (errors[0] + errors[1])


class KT:
    """Knowledge translation: an MLP-Mixer writes the weights of a small block from those of a large one.

    The defaults are those of the released code; its data set holds 300,000 pairs of blocks. Not to be confused with
    distillation: no image is shown when a block is translated.

    Args:
        layers: Pairs of token and channel mixing.
        channels: Width of a token inside the translator.
        hidden_tokens: Hidden width of the token mixing.
        hidden_channels: Hidden width of the channel mixing.
        dropout: Share of activations left out in training.
        augmented: What masking and noise are applied to.
        mask: Share of entries set to zero, drawn anew for every batch.
        noise: Standard deviation of the noise added to every entry, drawn anew for every batch.

    Raises:
        InputError: A value is out of its range.

    Example:
        >>> KT(layers=2).channels
        128
    """

    card: ClassVar[Card] = Card(
        name="kt",
        summary="Trains a network that writes a small block's weights from those of a large block.",
        papers=(
            Paper(
                title="Knowledge Translation: A New Pathway for Model Compression",
                authors="W. Sun, D. Chen, J. Chen, Y. Feng, C. Chen, C. Wang",
                venue="preprint",
                year=2024,
                identifier="arXiv:2401.05772",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="Reports the accuracy of translated blocks on test images.",
                code="Chooses the checkpoint by the very test images it reports.",
                default="neither",
            ),
            Quirk(
                paper="Trains the networks of the data set on augmented digits.",
                code="Mirrors digits from left to right, half of the time, and applies a greyscale transform that does "
                "nothing to grey images.",
                default="code",
                option="flip",
            ),
            Quirk(
                paper="Augments weights; the values are not known.",
                code="The command of the README switches masking and noise off.",
                default="code",
                option="mask, noise, augmented",
            ),
        ),
    )
    warmup_epochs: int = 0

    def __init__(
        self,
        *,
        layers: int = 24,
        channels: int = 128,
        hidden_tokens: int = 256,
        hidden_channels: int = 512,
        dropout: float = 0.1,
        augmented: Augmented = "inputs",
        mask: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        sizes = {"channels": channels, "hidden_tokens": hidden_tokens, "hidden_channels": hidden_channels}
        for name, value, least in [("layers", layers, 0), *((name, value, 1) for name, value in sizes.items())]:
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be at least 0 and below 1, not {dropout}")
        if augmented not in get_args(Augmented):
            raise unknown_name("augmented", augmented, get_args(Augmented))
        self.layers = layers
        self.channels = channels
        self.hidden_tokens = hidden_tokens
        self.hidden_channels = hidden_channels
        self.dropout = dropout
        self.augmented: Augmented = augmented
        self.mask = share("mask", mask)
        self.noise = not_negative("noise", noise)

    def build(self, planes: int) -> Translator:
        """Return an untrained translator for blocks of so many planes."""
        return Translator(
            layers=self.layers,
            channels=self.channels,
            hidden_tokens=self.hidden_tokens,
            hidden_channels=self.hidden_channels,
            dropout=self.dropout,
            tokens=2 * planes**2,
        )

    def augment(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens of large and small blocks, masked and perturbed as asked for, anew at every call.

        Shapes:
            inputs: [B, 2·P², 9]. targets: [B, P², 9]. Both are returned in their shape.
        """
        if self.augmented in ("inputs", "both"):
            inputs = augment(inputs, prob=self.mask, noise=self.noise)
        if self.augmented in ("targets", "both"):
            targets = augment(targets, prob=self.mask, noise=self.noise)
        return inputs, targets
