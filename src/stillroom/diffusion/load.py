"""Find a diffusion model by what a user calls it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.denoisers.diffusers_models import PredictionType, diffusers_model
from stillroom.errors import InputError

__all__ = ["FORMS", "load_denoiser"]

FORMS = "digits, RUN_DIR, optimal:DATA[@BANDWIDTH], diffusers:FOLDER_OR_ID or edm:FILE"

PRETRAINED = Path(__file__).parent / "pretrained"


def load_denoiser(
    spec: str | Path,
    *,
    device: torch.device | str = "cpu",
    allow_pickle: bool = False,
    images: int | None = None,
    image_size: int | None = None,
    prediction_type: PredictionType | None = None,
    guidance: float = 1.0,
    prompt: str | None = None,
) -> DenoisingModel:
    """Load a model.

    Args:
        spec: ``digits``, the model that comes with stillroom; the directory of a run of ``stillroom diffusion train``,
            or its ``model.json``; ``optimal:DATA`` or ``optimal:DATA@BANDWIDTH``, the closed-form denoiser of a data
            set's training images, smeared; ``diffusers:FOLDER_OR_ID``; ``edm:FILE``.
        device: Where it computes.
        allow_pickle: Read files that are pickles, which can run code when opened.
        images: For ``optimal:DATA``: only so many training images, the first ones.
        image_size: For ``optimal:DATA``: resize the images to squares of this side.
        prediction_type: For ``diffusers:``: what the network predicts, where its folder does not say.
        guidance: Scale of classifier-free guidance towards a class or prompt; 1 is none, else each evaluation is two.
        prompt: Text for a text-to-image model.

    Raises:
        InputError: There is no such model; the message names the forms. Or an option does not go with it.

    Example:
        >>> load_denoiser("digits").shape
        (1, 8, 8)
    """
    kind, _, rest = str(spec).partition(":")
    if kind != "optimal" and (images is not None or image_size is not None):
        raise InputError("images and image_size choose the data of optimal:DATA; they do not change another model")
    if kind != "diffusers" and prompt is not None:
        raise InputError(f"a prompt is for text-to-image models of diffusers; {spec} takes none")
    if kind != "diffusers" and prediction_type is not None:
        raise InputError(f"prediction_type is for models of diffusers; {spec} says itself what it predicts")
    if kind == "diffusers" and rest:
        return diffusers_model(
            rest,
            device=device,
            prediction_type=prediction_type,
            prompt=prompt,
            guidance=guidance,
            allow_pickle=allow_pickle,
        )
    if kind == "optimal" and rest:
        model = _optimal(rest, torch.device(device), allow_pickle, images, image_size)
    elif kind == "edm" and rest:
        from stillroom.diffusion.denoisers.edm_checkpoints import edm_checkpoint

        model = edm_checkpoint(rest, allow_pickle=allow_pickle, device=device)
    else:
        path = PRETRAINED / "digits" if spec == "digits" else Path(spec)
        if not path.exists():
            raise InputError(f"there is no model {str(spec)!r}; name one as {FORMS}")
        model = _own(path, str(spec), device)
    return model if guidance == 1 else _guided(model, guidance)


def _guided(model: DenoisingModel, scale: float) -> DenoisingModel:
    from stillroom.diffusion.denoisers.closed_form import OptimalDenoiser
    from stillroom.diffusion.denoisers.guidance import ClassifierFreeGuidance

    if not model.classes or isinstance(model.denoiser, OptimalDenoiser):
        raise InputError(f"guidance needs a model trained with and without classes, and {model.name} is none")
    guided = ClassifierFreeGuidance(model.denoiser, scale, unconditional=torch.tensor(model.classes))
    # The hooked feature would be of both halves of the doubled batch.
    return replace(model, denoiser=guided, feature=None)


def _own(path: Path, name: str, device: torch.device | str) -> DenoisingModel:
    from stillroom.diffusion.amed.feature import bottleneck
    from stillroom.diffusion.store import read_denoiser

    denoiser, card = read_denoiser(path)
    denoiser.requires_grad_(False).to(device)
    return DenoisingModel(
        denoiser=denoiser,
        shape=card.shape,
        sigma_min=card.sigma_min,
        sigma_max=card.sigma_max,
        name=name,
        classes=len(card.classes),
        feature=bottleneck(denoiser, "network.middle"),
        extra={"class_names": list(card.classes), **card.extra},
    )


def _optimal(
    text: str, device: torch.device, allow_pickle: bool, images: int | None, image_size: int | None
) -> DenoisingModel:
    from stillroom.data.images import TensorImages
    from stillroom.data.options import DataOptions
    from stillroom.data.sources import load_data
    from stillroom.diffusion.denoisers.closed_form import OptimalDenoiser

    name, at, last = text.rpartition("@")
    name, bandwidth = (name, _bandwidth(last, text)) if at else (text, 0.0)
    options = DataOptions(name=name, augment="none", image_size=image_size, allow_pickle=allow_pickle)
    data = load_data(options, least_classes=1)
    train = data.train
    if not isinstance(train, TensorImages):
        raise InputError(f"{name} does not fit in memory, which its closed form needs; use a smaller image_size")
    if images is not None and not 1 <= images <= len(train):
        raise InputError(f"images is {images}; {name} has 1 to {len(train)} training images to choose")
    pixels, target = train.pixels[:images], train.target[:images]
    denoiser = OptimalDenoiser(pixels.to(device).float() / 127.5 - 1, labels=target.to(device), bandwidth=bandwidth)
    return DenoisingModel(
        denoiser=denoiser,
        shape=data.shape,
        name=f"optimal:{text}",
        classes=len(data.classes),
        extra={"class_names": list(data.classes), "data": name, "images": len(target), "bandwidth": bandwidth},
    )


def _bandwidth(text: str, spec: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"optimal:{spec}: {text!r} behind the @ is no bandwidth; write optimal:DATA@0.2, say"
        ) from None
