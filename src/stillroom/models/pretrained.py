"""Networks with the weights timm and torchvision publish: fetched once, then found in these packages' caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stillroom.errors import InputError, MissingExtraError
from stillroom.models._trace import linear_of_logits
from stillroom.models.weights import first_line

__all__ = ["Published", "fetched", "published", "torchvision_pretrained"]


@dataclass(frozen=True)
class Published:
    """What is known about published weights: the classes they answer for, the normalisation they expect."""

    classes: tuple[str, ...]  # empty where nobody names them
    mean: tuple[float, ...]
    std: tuple[float, ...]


def published(source: str, name: str) -> Published:
    """Return what timm or torchvision says about the weights of a network; nothing is fetched.

    Raises:
        InputError: There are no weights of that name.
        MissingExtraError: timm or torchvision is not installed.
    """
    return _of_timm(name) if source == "timm" else _of_torchvision(name)


def fetched(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a network whose weights may come over the network; ``name`` is for the message.

    Raises:
        InputError: They cannot be fetched or do not fit; the message names the mend.
    """
    try:
        return build()
    except Exception as error:  # whatever a foreign package raises means the same: no weights
        raise InputError(
            f"the pretrained weights of {name} cannot be loaded ({first_line(error)}); they are fetched once: connect "
            f"to the network, or name a file that holds them, {name}@FILE"
        ) from error


def torchvision_pretrained(name: str, num_classes: int, in_channels: int, size: tuple[int, int]) -> nn.Module:
    """Return a torchvision network with its published weights, with a fresh head where the classes are others.

    Raises:
        InputError: The weights cannot be fetched, or the network has no linear head to exchange.
    """
    from torchvision import models

    if in_channels != 3:
        raise InputError(f"the pretrained weights of torchvision:{name} take 3 channels, the images have {in_channels}")
    model = fetched(f"torchvision:{name}", lambda: models.get_model(name, weights="DEFAULT"))
    if num_classes != len(_of_torchvision(name).classes):
        try:
            path = linear_of_logits(model, torch.zeros(2, in_channels, *size))
        except Exception as error:  # as above: not at this size
            raise InputError(
                f"torchvision:{name} cannot take {size[0]}x{size[1]} images: {first_line(error)}"
            ) from error
        if path is None:
            raise InputError(f"torchvision:{name} has no linear head to exchange for {num_classes} classes")
        head = model.get_submodule(path)
        assert isinstance(head, nn.Linear)
        model.set_submodule(path, nn.Linear(head.in_features, num_classes, bias=head.bias is not None))
    return model


def _of_timm(name: str) -> Published:
    try:
        import timm
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
    except ImportError as error:
        raise MissingExtraError("timm", "vision") from error
    about: Any = timm.models.get_pretrained_cfg(name)
    if about is None or not about.has_weights:
        raise InputError(f"timm publishes no weights of {name!r}; name a file, timm:{name}@FILE")
    subset = infer_imagenet_subset(about)
    # "tench, Tinca tinca": the first of several names of one class
    names = [name.split(",")[0] for name in ImageNetInfo(subset).label_descriptions()] if subset else []
    # ImageNet has two kinds of cranes; a name that is not alone gets its position.
    classes = [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names)]
    return Published(tuple(classes), tuple(about.mean), tuple(about.std))


def _of_torchvision(name: str) -> Published:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError("torchvision", "vision") from error
    try:
        weights: Any = models.get_model_weights(name).DEFAULT
    except (ValueError, AttributeError):  # AttributeError: a network without any
        raise InputError(
            f"torchvision publishes no weights of {name!r}; name a file, torchvision:{name}@FILE"
        ) from None
    how = weights.transforms()
    return Published(tuple(weights.meta["categories"]), tuple(how.mean), tuple(how.std))
