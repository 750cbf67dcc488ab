"""What attacks without data share: the generator that makes their queries, and a memory of what was asked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillroom.errors import InputError

__all__ = ["Generator", "Replay"]


class Generator(nn.Module):
    """DFME's generator: noise to images, whose values before tanh are at hand.

    J.-B. Truong, P. Maini, R. J. Walls, N. Papernot, "Data-Free Model Extraction", CVPR 2021. Linear to 128 maps of a
    quarter of the side, batch norm, and twice: upsampling by two, 3x3 convolution, batch norm; the last batch norm has
    no parameters.

    Args:
        shape: Channels, height and width of the images.
        latent: Numbers of noise an image is made of.
        width: Maps of the first stages; the last but one has half of them.

    Shapes:
        Takes [B, latent], returns [B, C, H, W] before tanh.

    Raises:
        InputError: The images are smaller than 4 pixels, or a number is below 1.

    Example:
        >>> made = Generator((3, 28, 28), latent=8, width=4)(torch.zeros(2, 8))
        >>> made.shape, Generator.pixels(torch.zeros(1)).item()
        (torch.Size([2, 3, 28, 28]), 0.5)
    """

    def __init__(self, shape: tuple[int, int, int], *, latent: int = 256, width: int = 128) -> None:
        super().__init__()
        channels, height, side = shape
        if min(height, side) < 4 or min(channels, latent) < 1 or width < 2:
            raise InputError(f"no generator of {width} maps makes images of shape {shape} from {latent} numbers")
        self.size, self.latent = (height, side), latent
        self.start = (width, -(-height // 4), -(-side // 4))
        self.first = nn.Linear(latent, self.start[0] * self.start[1] * self.start[2])
        self.norm = nn.BatchNorm2d(width)
        self.middle = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2))
        self.last = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, channels, 3, padding=1),
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, noise: Tensor) -> Tensor:
        """Return images before tanh."""
        maps = self.norm(self.first(noise).view(-1, *self.start))
        maps = self.middle(F.interpolate(maps, scale_factor=2))
        made: Tensor = self.last(F.interpolate(maps, size=self.size))
        return made

    @staticmethod
    def pixels(pre_activation: Tensor) -> Tensor:
        """Return the images in 0..1: tanh, moved from -1..1."""
        return (pre_activation.tanh() + 1) / 2


class Replay:
    """The last queries and answers, to train on again at no cost.

    Args:
        size: Queries that are kept; the oldest go first.

    Example:
        >>> memory = Replay(2)
        >>> memory.add(torch.arange(3.0).view(3, 1), torch.arange(3.0).view(3, 1))
        >>> sorted(memory.images.flatten().tolist())
        [1.0, 2.0]
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise InputError(f"a memory of {size} queries holds nothing; give at least 1")
        self.size = size
        self._images: Tensor | None = None  # a ring that doubles until it has its size
        self._answers: Tensor | None = None
        self._seen = 0

    def __len__(self) -> int:
        """Count the queries that are held."""
        return min(self._seen, self.size)

    @property
    def images(self) -> Tensor:
        """The images that are held, in no particular order."""
        assert self._images is not None
        return self._images[: len(self)]

    def add(self, images: Tensor, answers: Tensor) -> None:
        """Take in queries [B, ...] and answers [B, K]."""
        self._seen += len(images)
        images, answers = images[-self.size :], answers[-self.size :]  # of a larger batch the last ones
        places = (self._seen - len(images) + torch.arange(len(images))) % self.size
        self._images = _room(self._images, images, len(self), self.size)
        self._answers = _room(self._answers, answers, len(self), self.size)
        self._images[places], self._answers[places] = images.detach(), answers.detach()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return queries and answers drawn with replacement."""
        assert self._images is not None
        assert self._answers is not None
        chosen = torch.randint(len(self), (count,), generator=generator)
        return self._images[chosen], self._answers[chosen]


def _room(ring: Tensor | None, like: Tensor, needed: int, size: int) -> Tensor:
    if ring is not None and len(ring) >= needed:
        return ring
    larger = like.new_empty((min(2 * needed, size), *like.shape[1:]))
    if ring is not None:
        larger[: len(ring)] = ring
    return larger
