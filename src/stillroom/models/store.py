"""Store a network as ``model.safetensors`` and ``model.json``, and load it without the code that trained it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from stillroom.errors import InputError
from stillroom.models.composed import Projector, ReusedClassifier
from stillroom.models.create import ModelSpec, create_model
from stillroom.models.stored import Fields, read_model, state_hash, write_model
from stillroom.models.weights import load_weights

__all__ = ["LoadedModel", "ModelCard", "load_model", "save_model", "weights_hash"]

KIND = ("stillroom-model", 1)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is needed to use a stored network: how to build it, its classes, the images it expects.

    ``architecture`` is a specification without weights (see :class:`~stillroom.models.create.ModelSpec`) or what
    :meth:`~stillroom.models.composed.ReusedClassifier.architecture` returns. ``mean`` and ``std`` normalise images in
    [0, 1], one number a channel; ``input_shape`` is (C, H, W). ``extra`` is kept as it is: method, weights, accuracy.
    """

    architecture: str | Mapping[str, object]
    num_classes: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: tuple[int, int, int]
    extra: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise InputError(f"input_shape must be (channels, height, width), not {self.input_shape}")
        if len(self.classes) != self.num_classes:
            raise InputError(f"{len(self.classes)} class names for {self.num_classes} classes")
        if not len(self.mean) == len(self.std) == self.input_shape[0]:
            raise InputError(
                f"mean and std must hold one number for each of {self.input_shape[0]} channels, "
                f"not {len(self.mean)} and {len(self.std)}"
            )


class LoadedModel(NamedTuple):
    """A stored network, in evaluation mode, with its card."""

    model: nn.Module
    card: ModelCard


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a network's parameters and buffers.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> before = weights_hash(net)
        >>> _ = nn.init.constant_(net.bias, 7.0)
        >>> weights_hash(net) == before
        False
    """
    return state_hash(model.state_dict())


def save_model(directory: str | Path, model: nn.Module, card: ModelCard) -> None:
    """Write ``model.safetensors`` and ``model.json`` into a directory, each of them atomically.

    Args:
        directory: Created when missing.
        model: The network.
        card: Its card; ``extra`` must be made of what JSON knows.

    Raises:
        InputError: The architecture names weights, or the card holds what JSON does not know.
        OutputError: The disk is full or the directory not writable; files written before stay whole.

    Example:
        >>> import tempfile
        >>> card = ModelCard(architecture="resnet8", num_classes=2, classes=("cat", "dog"), mean=(0.5,), std=(0.5,),
        ...                  input_shape=(1, 8, 8))
        >>> net = create_model("resnet8", num_classes=2, in_channels=1, image_size=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(folder, net, card)
        ...     load_model(folder).card.classes
        ('cat', 'dog')
    """
    if isinstance(card.architecture, str) and ModelSpec.parse(card.architecture).weights is not None:
        raise InputError(f"the card's architecture {card.architecture!r} must not name weights")
    about = {
        "architecture": card.architecture,
        "num_classes": card.num_classes,
        "classes": card.classes,
        "mean": card.mean,
        "std": card.std,
        "input_shape": card.input_shape,
        "extra": card.extra,
    }
    write_model(directory, model.state_dict(), KIND, about)


def load_model(path: str | Path, *, allow_import: bool = False) -> LoadedModel:
    """Build a stored network and load its weights.

    Args:
        path: A run directory, or its ``model.json``; the weights lie beside it.
        allow_import: Permit an architecture that is a user's own function: it is imported, which runs code the file
            names. Without it such a file is refused.

    Returns:
        The network in evaluation mode, and its card.

    Raises:
        InputError: A file is missing, damaged, of another format, or does not fit the other.
    """
    stored = read_model(path, KIND)
    card = _card(stored.about, stored.file)
    model = _build(card.architecture, card, stored.file, allow_import)
    load_weights(model, stored.state(), source=stored.weights)
    return LoadedModel(model.eval(), card)


def _build(architecture: object, card: ModelCard, file: Path, allow_import: bool) -> nn.Module:
    channels, height, width = card.input_shape
    if isinstance(architecture, str):
        spec = ModelSpec.parse(architecture)
        if spec.weights is not None:
            raise InputError(f"{file}: the architecture {architecture!r} must not name a weights file")
        if spec.source == "import" and not allow_import:
            raise InputError(
                f"{file} asks to import {architecture!r}, which runs code; if you trust it, pass allow_import=True or "
                f"name both yourself: {architecture}@{file.with_name('model.safetensors')}"
            )
        return create_model(spec, num_classes=card.num_classes, in_channels=channels, image_size=(height, width))
    if not isinstance(architecture, Mapping) or architecture.get("kind") != "reused_classifier":
        raise InputError(f"{file} describes an architecture this version does not know; update stillroom")
    part = Fields(architecture, file)
    pool_size = None if architecture.get("pool_size") is None else part.number("pool_size")
    student, teacher = part.number("student_channels"), part.number("teacher_channels")
    return ReusedClassifier(
        _build(part.text("backbone"), card, file, allow_import),
        part.text("tap"),
        Projector(student, teacher, part.number("factor")),
        nn.Linear(teacher, card.num_classes),
        sample=torch.zeros(2, *card.input_shape),
        pool_size=pool_size,
    )


def _card(about: Mapping[str, object], file: Path) -> ModelCard:
    part = Fields(about, file)
    shape = part.row("input_shape", (int,), "three whole numbers")
    if len(shape) != 3:
        raise InputError(f"{file}: 'input_shape' must be three whole numbers")
    architecture = about.get("architecture")
    try:
        return ModelCard(
            architecture=architecture if isinstance(architecture, str) else part.table("architecture"),
            num_classes=part.number("num_classes"),
            classes=part.row("classes", (str,), "a list of names"),
            mean=tuple(float(value) for value in part.row("mean", (int, float), "a list of numbers")),
            std=tuple(float(value) for value in part.row("std", (int, float), "a list of numbers")),
            input_shape=(shape[0], shape[1], shape[2]),
            extra=part.table("extra"),
        )
    except InputError as error:
        raise InputError(str(error) if str(file) in str(error) else f"{file}: {error}") from error
