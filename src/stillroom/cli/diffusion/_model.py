"""The options of verbs that take a diffusion model."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from stillroom.diffusion.denoiser import DenoisingModel
from stillroom.diffusion.denoisers.diffusers_models import PredictionType
from stillroom.diffusion.load import FORMS, load_denoiser
from stillroom.training.fabric import Device, torch_device

__all__ = ["GUIDANCE_OPTIONS", "MODEL_OPTIONS", "add_guidance", "add_model", "model_of"]

MODEL_OPTIONS = ("model", "images", "image_size", "prediction_type", "device", "allow_pickle")
GUIDANCE_OPTIONS = ("guidance", "prompt")


def add_model(parser: ArgumentParser) -> None:
    """Add ``--model`` and what else says which model, and where it computes."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", type=str, default="digits", metavar="MODEL", help=f"{FORMS}; digits comes along")
    text = "of optimal:DATA, take only so many training images"
    group.add_argument("--images", type=int | None, default=None, metavar="N", help=text)
    text = "of optimal:DATA, resize the images to squares of this side"
    group.add_argument("--image_size", type=int | None, default=None, metavar="N", help=text)
    text = "what a network of diffusers predicts, where its folder does not say: epsilon, v_prediction, sample or "
    group.add_argument(
        "--prediction_type", type=PredictionType | None, default=None, metavar="TYPE", help=text + "flow_prediction"
    )
    group.add_argument("--device", type=Device, default="auto", help="where to compute; auto takes an accelerator")
    text = "read files that are pickles, which can run code when opened"
    group.add_argument("--allow_pickle", action="store_true", help=text)


def add_guidance(parser: ArgumentParser) -> None:
    """Add ``--guidance`` and ``--prompt``, for verbs that draw one kind of picture."""
    group = parser.add_argument_group("guidance")
    text = "scale of classifier-free guidance towards the class or prompt; 1 is none, else each evaluation is two"
    group.add_argument("--guidance", type=float, default=1.0, metavar="X", help=text)
    text = "text for a text-to-image model of diffusers"
    group.add_argument("--prompt", type=str | None, default=None, metavar="TEXT", help=text)


def model_of(options: Namespace) -> DenoisingModel:
    """Load the model the options name.

    Raises:
        InputError: There is no such model or device.
    """
    return load_denoiser(
        options.model,
        device=torch_device(options.device),
        allow_pickle=options.allow_pickle,
        images=options.images,
        image_size=options.image_size,
        prediction_type=options.prediction_type,
        **{name: options[name] for name in GUIDANCE_OPTIONS if name in options},
    )
