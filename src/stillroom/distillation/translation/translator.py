"""The translator: an MLP-Mixer from the tokens of a large block to those of a small one."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from stillroom.errors import InputError

__all__ = ["Translator"]

KERNEL = 9  # entries of a 3×3 kernel, the channels of a token


class _Mixing(nn.Module):
    """``x + MLP(LN(x))`` over the channels of each token, or over the tokens of each channel."""

    def __init__(self, width: int, hidden: int, channels: int, *, over_tokens: bool, dropout: float) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.over_tokens = over_tokens

    def forward(self, x: Tensor) -> Tensor:
        normed = self.layernorm(x)
        mixed = normed.transpose(1, 2) if self.over_tokens else normed
        mixed = self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(mixed)))))
        added: Tensor = x + (mixed.transpose(1, 2) if self.over_tokens else mixed)
        return added


class Translator(nn.Module):
    """Reads the weights of a large block, writes those of a small one.

    W. Sun et al., "Knowledge Translation", 2024: ``W₁`` from 9 to ``channels``; ``layers`` times
    token mixing, then channel mixing, both residual with LayerNorm in front and an exact GELU in between; LayerNorm and
    an MLP over the tokens from 72 to 36; ``W₂`` back to 9. ``W₁`` and ``W₂`` are left out when ``channels`` is 9.

    Args:
        layers: Pairs of token and channel mixing.
        channels: Width of a token inside.
        hidden_tokens: Hidden width of the token mixing.
        hidden_channels: Hidden width of the channel mixing.
        dropout: Share of activations left out in training, behind the GELU and the second linear map.
        tokens: Tokens read, 2·P² for a large block of P planes; half as many are written.

    Shapes:
        [B, tokens, 9] -> [B, tokens/2, 9].

    Raises:
        InputError: The tokens are of another number or width.

    Example:
        >>> import torch
        >>> translator = Translator(layers=1, channels=16, hidden_tokens=8, hidden_channels=8).eval()
        >>> translator(torch.zeros(2, 72, 9)).shape
        torch.Size([2, 36, 9])
    """

    def __init__(
        self,
        *,
        layers: int = 24,
        channels: int = 128,
        hidden_tokens: int = 256,
        hidden_channels: int = 512,
        dropout: float = 0.1,
        tokens: int = 72,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        self.map1 = nn.Linear(KERNEL, channels) if channels != KERNEL else nn.Identity()
        mixers = [
            nn.Sequential(
                _Mixing(tokens, hidden_tokens, channels, over_tokens=True, dropout=dropout),
                _Mixing(channels, hidden_channels, channels, over_tokens=False, dropout=dropout),
            )
            for _ in range(layers)
        ]
        self.layers = nn.Sequential(OrderedDict((f"mixer_layer_{i}", mixer) for i, mixer in enumerate(mixers)))
        self.layernorm = nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(tokens, hidden_tokens), nn.Linear(hidden_tokens, tokens // 2)
        self.map2 = nn.Linear(channels, KERNEL) if channels != KERNEL else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens of the small blocks."""
        if tokens.ndim != 3 or tokens.shape[1:] != (self.tokens, KERNEL):
            raise InputError(f"the translator reads tokens [B, {self.tokens}, {KERNEL}], not {list(tokens.shape)}")
        mixed = self.layernorm(self.layers(self.map1(tokens))).transpose(1, 2)
        written: Tensor = self.map2(self.fc2(F.gelu(self.fc1(mixed))).transpose(1, 2))
        return written
