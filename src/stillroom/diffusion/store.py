"""Store a denoiser as ``model.safetensors`` and ``model.json``, and load it again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from stillroom.diffusion.network import EDMDenoiser, NetworkOptions
from stillroom.errors import InputError
from stillroom.models.stored import Fields, read_model, write_model
from stillroom.models.weights import load_weights

__all__ = ["DenoiserCard", "StoredDenoiser", "read_denoiser", "save_denoiser"]

KIND = ("stillroom-denoiser", 1)


@dataclass(frozen=True, kw_only=True)
class DenoiserCard:
    """What is needed to use a stored denoiser, beside its weights.

    Args:
        network: The network's options.
        shape: Channels, height and width of an image, whose pixels lie in -1..1.
        classes: Names of the classes of a class-conditional model, else none.
        sigma_min: Smallest noise level to sample with.
        sigma_max: Largest one.
        extra: Kept as it is: data, training.

    Raises:
        InputError: The noise levels are no range, or the shape is none.
    """

    network: NetworkOptions
    shape: tuple[int, int, int]
    classes: tuple[str, ...] = ()
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise InputError(f"the shape of an image is (channels, height, width), not {self.shape}")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(
                f"sigma_min must be above 0 and below sigma_max, got {self.sigma_min:g} and {self.sigma_max:g}"
            )


class StoredDenoiser(NamedTuple):
    """A denoiser in evaluation mode, with its card."""

    denoiser: EDMDenoiser
    card: DenoiserCard


def save_denoiser(directory: str | Path, denoiser: EDMDenoiser, card: DenoiserCard, *, half: bool = False) -> None:
    """Write ``model.safetensors`` and ``model.json`` into a directory, each of them atomically.

    Args:
        directory: Created when missing.
        denoiser: The model the card describes.
        card: Its card; ``extra`` must be made of what JSON knows.
        half: Store the weights in float16, half as large; they are computed with in float32 again.

    Raises:
        InputError: The card holds what JSON does not know.
        OutputError: The disk is full or the directory not writable; files written before stay whole.

    Example:
        >>> import tempfile
        >>> card = DenoiserCard(network=NetworkOptions(width=8), shape=(1, 8, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_denoiser(folder, EDMDenoiser(card.shape, 0, card.network), card)
        ...     read_denoiser(folder).card.shape
        (1, 8, 8)
    """
    state = denoiser.state_dict()
    if half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    about = {
        "network": asdict(card.network),
        "shape": card.shape,
        "classes": card.classes,
        "sigma_min": card.sigma_min,
        "sigma_max": card.sigma_max,
        "extra": card.extra,
    }
    write_model(directory, state, KIND, about)


def read_denoiser(path: str | Path) -> StoredDenoiser:
    """Build a stored denoiser and load its weights.

    Args:
        path: A run directory, or its ``model.json``; the weights lie beside it.

    Raises:
        InputError: A file is missing, damaged, of another format, or does not fit the other.
    """
    stored = read_model(path, KIND)
    try:
        card = _card(Fields(stored.about, stored.file))
        # The weights are overwritten: nothing is drawn, from nobody's generator.
        with torch.random.fork_rng():
            denoiser = EDMDenoiser(card.shape, len(card.classes), card.network)
    except InputError as error:
        message = str(error)
        raise InputError(message if str(stored.file) in message else f"{stored.file}: {message}") from error
    load_weights(denoiser, stored.state(), source=stored.weights)
    return StoredDenoiser(denoiser.to(memory_format=torch.channels_last).eval(), card)


def _card(part: Fields) -> DenoiserCard:
    network = Fields(part.table("network"), part.file)
    shape = part.row("shape", (int,), "three whole numbers")
    if len(shape) != 3:
        raise InputError("'shape' must be three whole numbers")
    return DenoiserCard(
        network=NetworkOptions(
            width=network.number("width"),
            multipliers=network.row("multipliers", (int,), "a list of whole numbers"),
            blocks=network.number("blocks"),
            attention=network.row("attention", (int,), "a list of whole numbers"),
            patch=network.number("patch"),
            dropout=network.real("dropout"),
            highest_frequency=network.real("highest_frequency"),
            sigma_data=network.real("sigma_data"),
        ),
        shape=(shape[0], shape[1], shape[2]),
        classes=part.row("classes", (str,), "a list of names"),
        sigma_min=part.real("sigma_min"),
        sigma_max=part.real("sigma_max"),
        extra=part.table("extra"),
    )
