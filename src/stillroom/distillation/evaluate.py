"""How good a trained classifier is on the test images of a data set, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from stillroom.data.images import ImageData
from stillroom.data.loaders import EvalLoader
from stillroom.data.options import DataOptions
from stillroom.data.sources import load_data
from stillroom.distillation.networks import Normalisation, is_trained, live_teacher, load_network, new_network
from stillroom.errors import InputError
from stillroom.models.cost import measure
from stillroom.training.evaluate import accuracy
from stillroom.training.fabric import Device, make_fabric
from stillroom.training.teacher import Precision

__all__ = ["evaluate"]

BATCH = 250


def evaluate(
    model: str | nn.Module,
    data: str | DataOptions | ImageData,
    normalisation: Normalisation = "auto",
    *,
    label_map: Mapping[str, str] | None = None,
    precision: Precision = "32",
    device: Device = "auto",
) -> dict[str, Any]:
    """Measure a trained classifier on the test images of a data set, as a teacher would be used on them.

    Args:
        model: NAME@WEIGHTS, a run directory, or a module.
        data: The data set; its options, or what ``load_data`` returned.
        normalisation: What the network was trained with; ``auto`` is what published weights say, else the data's. A
            run directory knows its own.
        label_map: Class name of the data -> the network's, where they differ.
        precision: Compute in float32 or bfloat16.
        device: Where.

    Returns:
        ``architecture``, ``accuracy`` (top-1 in percent), ``cross_entropy``, ``images``, and the cost of one image:
        ``parameters``, ``flops``, ``latency_ms``, ``size_mb``.

    Raises:
        InputError: The network has no weights, cannot take the images, or its classes are not the data's.

    Example:
        >>> from torch import nn
        >>> measured = evaluate(nn.Sequential(nn.Conv2d(1, 10, 8), nn.ReLU(), nn.Flatten()), "digits", device="cpu")
        >>> measured["parameters"], measured["images"]
        (650, 359)
    """
    if isinstance(model, str) and not is_trained(model):
        raise InputError(f"{model} has no weights to evaluate; write {model}@FILE or name a run directory")
    if isinstance(data, str):
        data = DataOptions(name=data)
    images = load_data(data) if isinstance(data, DataOptions) else data
    fabric = make_fabric(device)
    if isinstance(model, str):
        network = load_network(model, images, normalisation=normalisation)
    else:
        network = new_network(model, images, normalisation=normalisation)
    teacher, _ = live_teacher(
        network, images, signals=frozenset(), device=fabric.device, precision=precision, label_map=label_map
    )
    loader = EvalLoader(images.test, batch_size=BATCH, mean=images.mean, std=images.std, device=fabric.device)
    return {
        "architecture": network.name,
        **accuracy(teacher.predict, loader, fabric),
        "images": len(images.test),
        **asdict(measure(network.model, images.shape)),
    }
