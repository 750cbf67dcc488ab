"""Create networks from a specification, with or without trained weights."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from stillroom.errors import InputError, MissingExtraError, nearest, unknown_name
from stillroom.models._trace import evaluating, logits_of
from stillroom.models.pretrained import fetched, published, torchvision_pretrained
from stillroom.models.weights import classes_in_weights, first_line, load_weights, read_weights

__all__ = ["ModelSpec", "classes_in_weights", "create_model"]

_FORMS = "timm:NAME, torchvision:NAME or package.module:factory"

Source = Literal["zoo", "timm", "torchvision", "import"]


@dataclass(frozen=True)
class ModelSpec:
    """A network by name, as the command line takes it.

    ``resnet20`` is a network of the CIFAR zoo; ``timm:NAME`` and ``torchvision:NAME`` come from these packages;
    ``package.module:factory`` is the user's own function or class. Each may be followed by ``@FILE`` with trained
    weights (safetensors, or a ``.pth``/``.pt`` that holds nothing but tensors), networks of timm and torchvision also
    by ``@pretrained`` for the weights these packages publish.

    Example:
        >>> ModelSpec.parse("timm:resnet18@weights/mine.safetensors")
        ModelSpec(source='timm', name='resnet18', weights=PosixPath('weights/mine.safetensors'))
        >>> ModelSpec.parse("my_package.nets:small").source
        'import'
    """

    source: Source
    name: str
    weights: Path | Literal["pretrained"] | None = None

    @classmethod
    def parse(cls, text: str) -> ModelSpec:
        """Read ``[timm:|torchvision:]NAME[@FILE|@pretrained]`` or ``package.module:factory[@FILE]``.

        Raises:
            InputError: The text has another form.
        """
        architecture, at, file = text.strip().partition("@")
        if at and not file:
            raise InputError(f"model {text!r} names no file after '@'; write NAME@weights.safetensors")
        weights: Path | Literal["pretrained"] | None = None
        if at:
            weights = "pretrained" if file == "pretrained" else Path(file).expanduser()
        head, colon, tail = architecture.partition(":")
        if not head or (colon and not tail):
            raise InputError(
                f"model {text!r} has no name; write NAME, timm:NAME, torchvision:NAME or package.module:factory"
            )
        if head == "timm" and colon:
            return cls("timm", tail, weights)
        if head == "torchvision" and colon:
            return cls("torchvision", tail, weights)
        if weights == "pretrained":
            raise InputError(f"nobody publishes weights of {architecture!r}; write {architecture}@weights.safetensors")
        if not colon:
            return cls("zoo", head, weights)
        if not all(part.isidentifier() for part in f"{head}.{tail}".split(".")):
            raise InputError(f"model {text!r} is no name of a network; write NAME, {_FORMS}")
        return cls("import", architecture, weights)

    @property
    def architecture(self) -> str:
        """The specification without weights."""
        return self.name if self.source in ("zoo", "import") else f"{self.source}:{self.name}"


def create_model(
    spec: str | ModelSpec, *, num_classes: int, in_channels: int, image_size: int | tuple[int, int]
) -> nn.Module:
    """Create a network and run it once on an empty image; fresh weights follow torch's random state.

    Networks are built as their package builds them, also for small images: a network that divides the resolution by
    32 gives 1×1 maps at 32×32. Two things are adapted. torchvision knows no number of channels, so the first
    convolution is replaced when it differs. Networks of a fixed input size (transformers) get ``img_size``, and below
    64 pixels those with ``patchN`` in their name also the largest smaller patch that leaves at least 7×7 of them.

    Args:
        spec: The specification, see :class:`ModelSpec`.
        num_classes: Number of classes K.
        in_channels: Channels of the images.
        image_size: Side of the images, or their height and width.

    Returns:
        The network, in training mode, on the default device.

    Raises:
        InputError: The name is unknown, the weights do not fit, or the network cannot take such images.
        MissingExtraError: timm or torchvision is not installed.

    Example:
        >>> net = create_model("resnet8", num_classes=10, in_channels=1, image_size=8)
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if isinstance(spec, str):
        spec = ModelSpec.parse(spec)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(num_classes, in_channels, height, width) < 1:
        raise InputError(
            f"classes, channels and image size must be positive, not {num_classes}, {in_channels} and {height}x{width}"
        )
    if spec.source == "timm":
        model = _timm(spec.name, num_classes, in_channels, (height, width), pretrained=spec.weights == "pretrained")
    elif spec.source == "torchvision":
        model = _torchvision(
            spec.name, num_classes, in_channels, (height, width), pretrained=spec.weights == "pretrained"
        )
    else:
        build = _zoo if spec.source == "zoo" else _imported
        model = build(spec.name, num_classes, in_channels, (height, width))
    if isinstance(spec.weights, Path):
        load_weights(model, read_weights(spec.weights), source=spec.weights)
    _try(model, spec.architecture, num_classes, (in_channels, height, width))
    return model


def _zoo(name: str, num_classes: int, in_channels: int, size: tuple[int, int]) -> nn.Module:
    from stillroom.models import zoo

    if name not in zoo.names():
        hint = nearest(name, zoo.names()) or f"; others are written {_FORMS}"
        raise InputError(f"unknown model {name!r}{hint}")
    return zoo.create(name, num_classes=num_classes, in_channels=in_channels)


def _timm(name: str, num_classes: int, in_channels: int, size: tuple[int, int], *, pretrained: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError("timm", "vision") from error
    if not timm.is_model(name):  # hub and local-dir names are not models of timm itself: nothing is fetched
        hint = nearest(name, timm.list_models()) or "; timm.list_models() lists them"
        raise InputError(f"unknown timm model {name!r}{hint}")
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_channels}
    fixed = timm.models.get_pretrained_cfg(name)
    if fixed is not None and fixed.fixed_input_size:
        options["img_size"] = size
        patch = re.search(r"patch(\d+)", name)
        smaller = _patch(min(size))
        if min(size) < 64 and patch and int(patch[1]) > smaller:
            options["patch_size"] = smaller
    model: nn.Module = _built(f"timm:{name}", size, lambda: timm.create_model(name, pretrained=False, **options))
    if not pretrained:
        return model
    published("timm", name)  # refuses names without weights
    return fetched(f"timm:{name}", lambda: timm.create_model(name, pretrained=True, **options))


def _patch(side: int) -> int:
    """Return the largest divisor of the side that leaves at least 7 patches, 1 for tiny images."""
    return max((d for d in range(1, side // 7 + 1) if side % d == 0), default=1)


def _torchvision(
    name: str, num_classes: int, in_channels: int, size: tuple[int, int], *, pretrained: bool
) -> nn.Module:
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtraError("torchvision", "vision") from error
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    if pretrained:
        return torchvision_pretrained(name, num_classes, in_channels, size)
    options: dict[str, Any] = {"num_classes": num_classes}
    if name.startswith("vit_"):
        options["image_size"] = size[0]
    elif name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    model: nn.Module = _built(f"torchvision:{name}", size, lambda: models.get_model(name, weights=None, **options))
    _take_channels(model, in_channels)
    return model


def _take_channels(model: nn.Module, in_channels: int) -> None:
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != in_channels:
                fresh = nn.Conv2d(
                    in_channels,
                    layer.out_channels,
                    kernel_size=layer.kernel_size,  # type: ignore[arg-type]
                    stride=layer.stride,  # type: ignore[arg-type]
                    padding=layer.padding,  # type: ignore[arg-type]
                    bias=layer.bias is not None,
                )
                model.set_submodule(path, fresh)
            return


def _imported(name: str, num_classes: int, in_channels: int, size: tuple[int, int]) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.append(here)  # a module beside which the command is run
    try:
        factory: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise InputError(f"model {name!r}: no module {error.name!r}; run where it can be imported") from error
    except AttributeError as error:
        raise InputError(f"model {name!r}: {first_line(error)}") from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(factory):
        raise InputError(f"model {name!r} is a {type(factory).__name__}; name a function or class that builds one")
    offered = {"num_classes": num_classes, "in_channels": in_channels, "image_size": size[0]}
    takes = inspect.signature(factory).parameters.values()
    options = {p.name: offered[p.name] for p in takes if p.name in offered}
    if any(p.kind is p.VAR_KEYWORD for p in takes):
        options |= {"num_classes": num_classes, "in_channels": in_channels}
    model = factory(**options)
    if not isinstance(model, nn.Module):
        raise InputError(f"model {name!r} built a {type(model).__name__}; it must build an nn.Module")
    return model


def _built(name: str, size: tuple[int, int], build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except Exception as error:  # whatever a foreign package raises means the same: not at this size
        raise InputError(f"{name} cannot be built for {size[0]}x{size[1]} images: {first_line(error)}") from error


def _try(model: nn.Module, name: str, num_classes: int, shape: tuple[int, int, int]) -> None:
    reference = next(model.parameters(), torch.zeros(0))
    try:
        with evaluating(model):
            output = model(torch.zeros(1, *shape, device=reference.device, dtype=reference.dtype))
    except Exception as error:  # see _built
        raise InputError(f"{name} cannot take {shape[0]}x{shape[1]}x{shape[2]} images: {first_line(error)}") from error
    if logits_of(output).shape != (1, num_classes):
        raise InputError(f"{name} gives {list(output.shape)} for one image; expected logits [1, {num_classes}]")
