"""Teachers and students as the pipeline needs them: created or loaded, tapped, with classes and normalisation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from stillroom.data.images import ImageData
from stillroom.errors import InputError, unknown_name
from stillroom.models.create import ModelSpec, create_model
from stillroom.models.signals import TapPaths
from stillroom.models.store import ModelCard, load_model
from stillroom.models.taps import Tapped, find_taps, user_taps
from stillroom.models.weights import classes_in_weights
from stillroom.training.teacher import LiveTeacher, Precision, match_classes, renormalisation, select_classes

__all__ = [
    *("Network", "Normalisation", "cacheable", "is_trained", "live_teacher", "load_network", "new_network", "tap"),
    "twin",
]

Normalisation = Literal["data", "imagenet", "half"]

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
    """Say whether a specification comes with weights: ``NAME@FILE``, a run directory or its ``model.json``."""
    is_path = "/" in spec and ":" not in spec
    return "@" in spec or is_path or Path(spec).is_dir() or spec.endswith("model.json")


def new_network(spec: str | nn.Module, data: ImageData, *, taps: Sequence[str] = ()) -> Network:
    """Create a network for the data's classes and shape; fresh weights follow torch's random state.

    Raises:
        InputError: The name is unknown, the network cannot take the data's shape, or a tap does not exist.
    """
    if isinstance(spec, nn.Module):
        model, architecture = spec, type(spec).__qualname__
    else:
        model = create_model(spec, num_classes=len(data.classes), in_channels=data.shape[0], image_size=data.shape[1:])
        architecture = ModelSpec.parse(spec).architecture
    return Network(_quick(model), _taps(model, data.shape, taps), _card(architecture, data.classes, data, "data"))


def load_network(
    spec: str, data: ImageData, *, taps: Sequence[str] = (), normalisation: Normalisation = "data"
) -> Network:
    """Load a trained network: from a run directory, or ``NAME@FILE`` with the normalisation it was trained with.

    A weights file does not say its class names: with as many classes as the data has, they are taken to be the
    data's, in the data's order.

    Raises:
        InputError: It does not exist, is damaged, or cannot take the data's images.
    """
    if "@" not in spec:
        loaded = load_model(spec)
        if loaded.card.input_shape[0] != data.shape[0]:
            raise InputError(
                f"{spec} takes images of {loaded.card.input_shape[0]} channel(s), {data.name} has {data.shape[0]}"
            )
        return Network(_quick(loaded.model), _taps(loaded.model, data.shape, taps), loaded.card)
    parsed = ModelSpec.parse(spec)
    assert parsed.weights is not None  # there is an '@'
    num_classes = classes_in_weights(parsed.weights) or len(data.classes)
    if num_classes != len(data.classes):
        raise InputError(
            f"{parsed.weights} answers for {num_classes} classes, {data.name} has {len(data.classes)}, and a weights "
            "file has no class names to match them by; use a run directory (with model.json) or matching data"
        )
    model = create_model(parsed, num_classes=num_classes, in_channels=data.shape[0], image_size=data.shape[1:])
    card = _card(parsed.architecture, data.classes, data, normalisation)
    return Network(_quick(model.eval()), _taps(model, data.shape, taps), card)


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


def _card(architecture: str, classes: tuple[str, ...], data: ImageData, normalisation: Normalisation) -> ModelCard:
    if normalisation == "data":
        mean, std = data.mean, data.std
    elif normalisation in STATISTICS:
        mean, std = (values[: data.shape[0]] for values in STATISTICS[normalisation])
    else:
        raise unknown_name("normalisation", normalisation, ["data", *STATISTICS])
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
