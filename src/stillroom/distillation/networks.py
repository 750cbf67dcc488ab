"""Teachers and students as the pipeline needs them: created or loaded, tapped, with classes and normalisation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from stillroom.data.images import ImageData
from stillroom.errors import InputError, unknown_name
from stillroom.models import zoo
from stillroom.models._trace import evaluating, logits_of
from stillroom.models.create import ModelSpec, create_model
from stillroom.models.pretrained import Published, published
from stillroom.models.signals import TapPaths
from stillroom.models.store import ModelCard, load_model
from stillroom.models.taps import Tapped, find_taps, user_taps
from stillroom.models.weights import classes_in_weights, first_line
from stillroom.training.teacher import LiveTeacher, Precision, match_classes, renormalisation, select_classes

__all__ = [
    *("Network", "Normalisation", "cacheable", "inputs", "is_trained", "live_teacher", "load_network", "new_network"),
    *("tap", "to_be_trained", "twin"),
]

Normalisation = Literal["auto", "data", "imagenet", "half"]

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclass(frozen=True)
class Network:
    """A classifier with what is needed to use it: where it is tapped, its classes, the normalisation it expects."""

    model: nn.Module
    taps: TapPaths
    card: ModelCard

    @property
    def name(self) -> str:
        """The architecture in one word or two."""
        architecture = self.card.architecture
        return architecture if isinstance(architecture, str) else f"{architecture['backbone']} + teacher's classifier"

    @property
    def classifier(self) -> nn.Linear | None:
        """The final linear layer, when the network has one."""
        layer = self.model.get_submodule(self.taps.classifier) if self.taps.classifier else None
        return layer if isinstance(layer, nn.Linear) else None


def is_trained(spec: str) -> bool:
    """Say whether a specification comes with weights: ``NAME@FILE``, ``NAME@pretrained``, or a run's directory."""
    return "@" in spec or _is_place(spec)


def _is_place(spec: str) -> bool:
    """Say whether a specification is a run's directory (or its ``model.json``) and no name of a network."""
    if spec.endswith("model.json") or Path(spec, "model.json").is_file():
        return True
    name = spec.partition("@")[0]
    return (("/" in name or Path(spec).is_dir()) and ":" not in name) and name not in zoo.names()


def inputs(*specs: str | nn.Module) -> list[Path]:
    """Return the files and folders that specifications read."""
    named = [spec for spec in specs if isinstance(spec, str)]
    files = [ModelSpec.parse(spec).weights for spec in named if "@" in spec and not _is_place(spec)]
    return [Path(spec) for spec in named if _is_place(spec)] + [file for file in files if isinstance(file, Path)]


def to_be_trained(teacher: str | nn.Module, epochs: int | None) -> bool:
    """Say whether a teacher is trained on the data first: it has no weights, or epochs to adapt them are given.

    Raises:
        InputError: The epochs are below 1, or the teacher is that of an earlier run, which stays as it is.
    """
    if epochs is not None and epochs < 1:
        raise InputError(f"teacher_epochs is {epochs}; it must be at least 1")
    if not isinstance(teacher, str):
        return epochs is not None
    if epochs is not None and _is_place(teacher):
        raise InputError(f"teacher_epochs asks to train the teacher, but {teacher} is trained; leave one of them out")
    return epochs is not None or not is_trained(teacher)


def new_network(
    spec: str | nn.Module, data: ImageData, *, taps: Sequence[str] = (), normalisation: Normalisation = "data"
) -> Network:
    """Create a network for the data's classes and shape; fresh weights follow torch's random state.

    Args:
        spec: The specification, or a module, which is copied.
        data: What the network is for.
        taps: Module paths of the stages; chosen automatically when empty.
        normalisation: What its weights were trained with, if they are not to be trained on the data.

    Raises:
        InputError: The name is unknown, the network cannot take the data's shape, or a tap does not exist.
    """
    if isinstance(spec, nn.Module):
        model, architecture = copy.deepcopy(spec).cpu(), type(spec).__qualname__
        with evaluating(model):
            answers = logits_of(model(_sample(data.shape))).shape[1:]
        if answers != (len(data.classes),):
            raise InputError(
                f"{architecture} answers {list(answers)} for an image, {data.name} has {len(data.classes)} classes"
            )
    elif _is_place(spec):
        raise InputError(
            f"{spec} is no name of a network; to start from stored weights write NAME@{spec}/model.safetensors"
        )
    else:
        model = create_model(spec, num_classes=len(data.classes), in_channels=data.shape[0], image_size=data.shape[1:])
        architecture = ModelSpec.parse(spec).architecture
    card = _card(architecture, data.classes, data, *_statistics(normalisation, data))
    return Network(_quick(model), _taps(model, data.shape, taps), card)


def load_network(
    spec: str, data: ImageData, *, taps: Sequence[str] = (), normalisation: Normalisation = "auto"
) -> Network:
    """Load a trained network: from a run directory, ``NAME@FILE``, or ``NAME@pretrained`` of timm or torchvision.

    A weights file does not say its class names: with as many classes as the data has, they are taken to be the
    data's, in the data's order. Published weights have the classes they were trained for.

    Args:
        spec: The specification.
        data: What the network is used on.
        taps: Module paths of the stages; chosen automatically when empty.
        normalisation: What it was trained with; ``auto`` is what published weights say, else the data's. A run
            directory knows its own.

    Raises:
        InputError: It does not exist, is damaged, or cannot take the data's images.
    """
    if _is_place(spec):
        return _load_run(spec, data, taps)
    parsed = ModelSpec.parse(spec)
    if parsed.weights is None:
        raise InputError(f"{spec} has no weights; write {spec}@FILE or name a run directory")
    known: Published | None = None
    classes = data.classes
    if parsed.weights == "pretrained":
        known = published(parsed.source, parsed.name)
        classes = known.classes
        if not classes:
            raise InputError(f"nobody names the classes of {spec}; train it on the data with teacher_epochs")
    elif (found := classes_in_weights(parsed.weights)) is not None and found != len(classes):
        raise InputError(
            f"{parsed.weights} answers for {found} classes, {data.name} has {len(classes)}, and a weights "
            "file has no class names to match them by; use a run directory (with model.json) or matching data"
        )
    model = create_model(parsed, num_classes=len(classes), in_channels=data.shape[0], image_size=data.shape[1:])
    card = _card(parsed.architecture, classes, data, *_statistics(normalisation, data, known))
    return Network(_quick(model.eval()), _taps(model, data.shape, taps), card)


def _load_run(place: str, data: ImageData, taps: Sequence[str]) -> Network:
    model, card = load_model(place)
    if card.input_shape[0] != data.shape[0]:
        raise InputError(f"{place} takes images of {card.input_shape[0]} channel(s), {data.name} has {data.shape[0]}")
    if card.input_shape != data.shape:
        # Convolutional networks take other sizes; the rest says now that it does not.
        try:
            with evaluating(model):
                model(_sample(data.shape))
        except (RuntimeError, ValueError, AssertionError) as error:
            size = "x".join(map(str, card.input_shape[1:]))
            raise InputError(
                f"{place} takes images of {size} pixels and not those of {data.name} ({first_line(error)}); "
                f"give data.image_size {card.input_shape[1]}"
            ) from error
    return Network(_quick(model), _taps(model, data.shape, taps), replace(card, input_shape=data.shape))


def twin(network: Network) -> Network:
    """Return a copy that shares no weight with the network."""
    return replace(network, model=copy.deepcopy(network.model))


def tap(network: Network, signals: frozenset[str]) -> Tapped:
    """Tap a network for the signals a method reads.

    Maps before the activation are left out where the architecture defines none; the methods that prefer them take
    those after it.
    """
    wanted = signals if network.taps.preact else signals - {"preact"}
    return Tapped(network.model, network.taps, wanted, sample=_sample(network.card.input_shape))


def cacheable(network: Network, signals: frozenset[str]) -> frozenset[str]:
    """Add the pooled features to what is tapped, where there are any: a cache holds them for the methods to come."""
    return signals | {"pooled"} if network.taps.classifier is not None else signals


def live_teacher(
    network: Network,
    data: ImageData,
    *,
    signals: frozenset[str],
    device: torch.device,
    precision: Precision = "32",
    label_map: Mapping[str, str] | None = None,
) -> tuple[LiveTeacher, nn.Linear | None]:
    """Return the frozen teacher for batches of the data, and its classifier in the data's class order.

    Raises:
        InputError: The classes do not match, or a signal is asked for that the network does not define.
    """
    class_map = match_classes(network.card.classes, data.classes, label_map)
    teacher = LiveTeacher(
        tap(network, signals),
        precision=precision,
        renormalise=renormalisation(data.mean, data.std, network.card.mean, network.card.std),
        class_map=class_map,
    )
    classifier = network.classifier
    if classifier is not None:
        classifier = select_classes(classifier, class_map).to(device)
    return teacher.to(device), classifier


def _quick(model: nn.Module) -> nn.Module:
    # Convolutions with channels-last weights give channels-last maps whatever they are fed; on CPUs a training step of
    # the zoo's networks then takes 1.1 to 1.7 times less time, and accelerators prefer it in half precision.
    return model.to(memory_format=torch.channels_last)


def _statistics(
    normalisation: Normalisation, data: ImageData, known: Published | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel."""
    if normalisation == "data" or (normalisation == "auto" and known is None):
        return data.mean, data.std
    if normalisation == "auto" and known is not None:
        mean, std = known.mean, known.std
    elif normalisation in STATISTICS:
        mean, std = STATISTICS[normalisation]
    else:
        raise unknown_name("normalisation", normalisation, get_args(Normalisation))
    if len(mean) == data.shape[0]:
        return mean, std
    # A grey image is shown to a network for colours as if its channels were equal.
    return (sum(mean) / len(mean),) * data.shape[0], (sum(std) / len(std),) * data.shape[0]


def _card(
    architecture: str, classes: tuple[str, ...], data: ImageData, mean: tuple[float, ...], std: tuple[float, ...]
) -> ModelCard:
    return ModelCard(
        architecture=architecture,
        num_classes=len(classes),
        classes=classes,
        mean=mean,
        std=std,
        input_shape=data.shape,
    )


def _sample(shape: Sequence[int]) -> Tensor:
    # Two rows: some networks refuse a single sample.
    return torch.zeros(2, *shape)


def _taps(model: nn.Module, shape: Sequence[int], stages: Sequence[str]) -> TapPaths:
    sample = _sample(shape)
    return user_taps(model, sample, list(stages)) if stages else find_taps(model, sample)
