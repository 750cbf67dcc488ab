"""Traffic to try a guard with: what thieves ask, by rising difficulty."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stillroom.data.folders import read_folder
from stillroom.data.images import ImageSet, TensorImages
from stillroom.data.options import DataOptions
from stillroom.data.sources import data_root, load_data
from stillroom.data.split import random_stream, set_aside
from stillroom.defense.contracts import Ints
from stillroom.errors import InputError, unknown_name

__all__ = ["OWN", "SURROGATES", "Traffic", "generated_images", "halves", "load_traffic", "noise_images"]

Pixels = NDArray[np.uint8]  # [N, C, H, W]
Shape = tuple[int, int, int]

# What needs no data set or is always beside the development data; from easy to hard to tell from a photograph.
SURROGATES = ("noise", "generated", "digits-dg", "pacs-small")
OWN = "own"  # stands for a half of the victim's own held-out images, which whoever asks for it deals out
DIGIT_DOMAINS = ("mnist", "mnist_m", "synth", "uci", "usps")
PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")

# Purposes of the random streams of one seed; those of the data sets and loaders end at 4.
_DRAW, _VARY, _HALVES, _NOISE, _GENERATED = 10, 11, 12, 13, 14


class Traffic(NamedTuple):
    """Images to ask, at the shape of the model that is asked.

    Shapes:
        images: [N, C, H, W], uint8. labels: [N], classes of the set they come from; None where there are none.
    """

    images: Pixels
    labels: Ints | None


def load_traffic(name: str, shape: Shape, count: int, *, seed: int = 0) -> Traffic:
    """Draw images of a named set, in random order and at a model's shape.

    A set that holds fewer images than asked for gives all of them first; the rest are random crops (60 to 100 % of the
    side) and mirror images of them, which is what a thief with few images would send.

    Args:
        name: ``noise``, ``generated``, ``digits-dg`` or ``pacs-small`` (the latter two also as ``NAME:DOMAIN``), or
            any data set the data options know, such as ``fashion-mnist`` or ``folder:PATH``: its training images.
        shape: Channels (1 or 3), height and width of the model's images.
        count: Images to return.
        seed: Of the draw.

    Raises:
        InputError: The set is unknown or missing, or ``shape`` or ``count`` is impossible.

    Example:
        >>> traffic = load_traffic("generated", (3, 16, 16), 12)
        >>> traffic.images.shape, traffic.images.dtype, traffic.labels
        ((12, 3, 16, 16), dtype('uint8'), None)
    """
    if count < 1:
        raise InputError(f"{count} images were asked for; ask for at least one")
    if shape[0] not in (1, 3) or min(shape) < 1:
        raise InputError(f"images of shape {shape} cannot be made; there must be 1 or 3 channels")
    kind, _, part = name.partition(":")
    if kind in ("noise", "generated"):
        if part:
            raise InputError(f"{kind} takes nothing after a colon, but {name!r} was asked for")
        return Traffic((noise_images if kind == "noise" else generated_images)(shape, count, seed=seed), None)
    images: ImageSet
    if kind == "digits-dg":
        images = _domains(kind, part, DIGIT_DOMAINS, shape)
    elif kind == "pacs-small":
        images = _domains(kind, part, PACS_DOMAINS, shape)
    else:
        images = load_data(DataOptions(name=name)).train
    order = torch.randperm(len(images), generator=random_stream(seed, _DRAW))[:count]
    chosen = _decoded(images.subset(order))
    pixels, target = _at_shape(chosen.pixels, shape), chosen.target
    if count > len(pixels):
        again = torch.arange(len(pixels), count) % len(pixels)
        pixels = torch.cat([pixels, _vary(pixels[again], random_stream(seed, _VARY))])
        target = torch.cat([target, target[again]])
    return Traffic(pixels.numpy(), target.numpy())


def halves(images: TensorImages, classes: int, *, seed: int = 0) -> tuple[TensorImages, TensorImages]:
    """Split a set into two halves with the same classes, so that a thief may hold one half of the victim's own data.

    Example:
        >>> pixels = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
        >>> left, right = halves(TensorImages(pixels, torch.arange(8) % 2), 2)
        >>> left.target.bincount().tolist(), right.target.bincount().tolist()
        ([2, 2], [2, 2])
    """
    left, right = set_aside(images.target, classes, 0.5, random_stream(seed, _HALVES))
    return images.subset(left), images.subset(right)


def noise_images(shape: Shape, count: int, *, seed: int = 0) -> Pixels:
    """Return images [count, C, H, W] of independent pixels: every second one uniform, the others Gaussian."""
    rng = np.random.default_rng([seed, _NOISE])
    images = rng.integers(0, 256, (count, *shape), np.uint8)
    normal = rng.normal(127.5, 64, (len(images[1::2]), *shape))
    images[1::2] = normal.round().clip(0, 255).astype(np.uint8)
    return images


def generated_images(shape: Shape, count: int, *, seed: int = 0) -> Pixels:
    """Return images [count, C, H, W] made without data: random generators, random fields and dead leaves in turn.

    They are what "Learning to See by Looking at Noise" (M. Baradad, J. Wulff, T. Wang, P. Isola, A. Torralba, NeurIPS
    2021) trains on in the place of photographs: convolutional generators with random weights (each draws 64 images),
    smooth random fields with the power spectrum of natural images, and discs that cover one another.
    """
    rng = np.random.default_rng([seed, _GENERATED])
    images = np.empty((count, *shape), np.uint8)
    images[0::3] = _random_generators(shape, len(images[0::3]), random_stream(seed, _GENERATED))
    images[1::3] = _random_fields(shape, len(images[1::3]), rng)
    images[2::3] = _dead_leaves(shape, len(images[2::3]), rng)
    return images


def _random_generators(shape: Shape, count: int, stream: torch.Generator) -> Pixels:
    channels, height, width = shape
    small = [max(math.ceil(side / 4), 2) for side in (height, width)]  # a map of one pixel cannot be normalised
    parts = [torch.empty(0, *shape)]
    for start in range(0, count, 64):
        x = torch.randn(min(64, count - start), 32, *small, generator=stream)
        for doubled, out in ((True, 32), (True, 16), (False, channels)):
            if doubled:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            weight = torch.randn(out, x.shape[1], 3, 3, generator=stream) / (9 * x.shape[1]) ** 0.5
            x = F.instance_norm(F.conv2d(x, weight, padding=1))
            x = F.leaky_relu(x, 0.2) if doubled else x
        parts.append(torch.tanh(x[:, :, :height, :width]))
    return ((torch.cat(parts) + 1) * 127.5).round().to(torch.uint8).numpy()


def _random_fields(shape: Shape, count: int, rng: np.random.Generator) -> Pixels:
    channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf  # no mean of its own
    power = rng.uniform(0.75, 2.0, (count, 1, 1, 1))
    spectrum = np.fft.rfft2(rng.standard_normal((count, channels, height, width))) / frequency**power
    field = np.fft.irfft2(spectrum, (height, width))
    field /= np.maximum(field.std((2, 3), keepdims=True), 1e-12)  # a single pixel has no deviation
    mixing = rng.standard_normal((count, channels, channels)) + 2  # channels of photographs go together
    field = np.einsum("nij,njhw->nihw", mixing, field)
    field /= np.maximum(field.std((1, 2, 3), keepdims=True), 1e-12)
    level, contrast = rng.uniform(64, 192, (count, channels, 1, 1)), rng.uniform(25, 75, (count, 1, 1, 1))
    pixels: Pixels = (level + contrast * field).round().clip(0, 255).astype(np.uint8)
    return pixels


def _dead_leaves(shape: Shape, count: int, rng: np.random.Generator, *, leaves: int = 60) -> Pixels:
    channels, height, width = shape
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    side = min(height, width)
    images = np.repeat(rng.integers(0, 256, (count, channels, 1, 1), np.uint8), height, 2).repeat(width, 3)
    for image in images:
        # Radii with density r^-3, as of things seen from any distance.
        radii = 1 / np.sqrt(rng.uniform(1 / (side / 2) ** 2, 1 / max(side / 32, 0.5) ** 2, leaves))
        colours = rng.integers(0, 256, (leaves, channels, 1), np.uint8)
        centres = rng.uniform(0, 1, (leaves, 2)) * (height, width)
        for radius, colour, (y, x) in zip(np.sort(radii)[::-1], colours, centres, strict=True):
            image[:, (rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = colour
    return images


def _domains(kind: str, part: str, known: tuple[str, ...], shape: Shape) -> TensorImages:
    """Read one domain of a set, or all of them one after the other, at a shape."""
    if part and part not in known:
        raise unknown_name(f"domain of {kind}", part, known)
    root = data_root()
    if root is None or not (root / kind).is_dir():
        raise InputError(f"no data set {kind!r} at {root}; set STILLROOM_DATA to the folder that holds it")
    read = _read_digits if kind == "digits-dg" else _read_pacs
    found = [read(root / kind, domain) for domain in ([part] if part else known)]
    pixels = torch.cat([_at_shape(images.pixels, shape) for images in found])
    return TensorImages(pixels, torch.cat([images.target for images in found]))


def _read_digits(folder: Path, domain: str) -> TensorImages:
    path = folder / f"{domain}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            images, labels = stored["images"], stored["labels"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise InputError(f"{path} cannot be read as images and labels ({error}); fetch it again") from error
    if images.ndim == 3:
        images = images[..., None]
    return TensorImages(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long())


def _read_pacs(folder: Path, domain: str) -> TensorImages:
    return _decoded(read_folder(folder / domain, image_size=None).train)


def _decoded(images: ImageSet) -> TensorImages:
    if isinstance(images, TensorImages):
        return images
    parts = list(images.batches(torch.split(torch.arange(len(images)), 256)))
    return TensorImages(torch.cat(parts), images.target)


def _at_shape(pixels: Tensor, shape: Shape) -> Tensor:
    """Bring pixels [N, C, H, W], uint8, to a model's channels, height and width."""
    if pixels.shape[1] != shape[0]:
        if shape[0] == 3:
            pixels = pixels.expand(-1, 3, -1, -1)
        else:  # luma of ITU-R BT.601
            weight = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
            pixels = (pixels.float() * weight).sum(1, keepdim=True).round().to(torch.uint8)
    if pixels.shape[2:] != shape[1:]:
        pixels = F.interpolate(pixels.contiguous(), shape[1:], mode="bilinear", antialias=True)
    return pixels.contiguous()


def _vary(pixels: Tensor, stream: torch.Generator) -> Tensor:
    """Crop and mirror every image [N, C, H, W], uint8, at random."""
    count = len(pixels)
    scale = 0.6 + 0.4 * torch.rand(count, generator=stream)
    shift = (2 * torch.rand(count, 2, generator=stream) - 1) * (1 - scale)[:, None]
    mirror = 1 - 2 * torch.randint(2, (count,), generator=stream)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirror, scale, shift
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)
