"""Any diffusers model - UNet2D, UNet2DCondition, DiT, flow matching, with or without a VAE - as a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from stillroom.diffusion.amed.feature import bottleneck
from stillroom.diffusion.denoiser import Denoiser, DenoisingModel
from stillroom.diffusion.denoisers._diffusers_folder import find_folder, import_diffusers, load_part, read_config
from stillroom.diffusion.denoisers._diffusers_networks import NETWORKS, DiffusersNetwork
from stillroom.diffusion.denoisers._diffusers_text import text_conditions
from stillroom.diffusion.denoisers.discrete_preconditioning import Discrete
from stillroom.diffusion.denoisers.guidance import ClassifierFreeGuidance
from stillroom.diffusion.denoisers.preconditioning import Flow, Preconditioned
from stillroom.errors import InputError, unknown_name
from stillroom.models.weights import first_line

__all__ = ["PredictionType", "diffusers_model"]

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
PREDICTIONS = get_args(PredictionType)
AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
# What says which noise levels a network was trained on.
BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")


def diffusers_model(
    source: str | Path,
    *,
    subfolder: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction_type: PredictionType | None = None,
    prompt: str | None = None,
    negative_prompt: str = "",
    guidance: float = 1.0,
    size: int | None = None,
    allow_pickle: bool = False,
) -> DenoisingModel:
    """Load a model of diffusers as a denoiser in the EDM convention (Karras et al., NeurIPS 2022, section 2 and 5).

    Args:
        source: A pipeline's folder (with ``model_index.json``), a bare model's folder (with ``config.json``), or the id
            of either on the Hugging Face hub.
        subfolder: The part of a pipeline that denoises, when it has an unusual name.
        device: Where it computes.
        dtype: In what precision the network computes; the VAE always computes in float32.
        prediction_type: What the network predicts. Read from the scheduler's configuration unless given; a bare model
            has none, and is then taken to know DDPM's 1,000 linear betas (0.0001 to 0.02).
        prompt: Text the model is conditioned on unless the caller gives another condition.
        negative_prompt: Text that stands for "none" under guidance.
        guidance: Scale of classifier-free guidance; 1 is none. Every evaluation then runs a doubled batch.
            Guidance-distilled networks (Flux) are told the number instead.
        size: Side of the samples (of latents, for latent models); the network's own unless given.
        allow_pickle: Take weights that are pickles where there are no safetensors.

    Returns:
        The model. For latent models its shape is that of latents, and ``decode`` makes images. ``feature`` is the
        output of a U-Net's middle block, of the conditional half under guidance.

    Raises:
        InputError: There is no such model, a part of it is missing or damaged, or it is of another kind.
        MissingExtraError: diffusers is not installed.
    """
    root = find_folder(source, allow_pickle)
    index = read_config(root / "model_index.json") if (root / "model_index.json").exists() else {}
    folder = root / subfolder if subfolder else _denoising_part(root, index)
    preconditioning = _preconditioning(root, folder, prediction_type)
    model = load_part(_class(folder, (*NETWORKS, "Transformer2DModel")), folder, dtype=dtype, allow_pickle=allow_pickle)
    network = DiffusersNetwork(model.to(device), distilled_guidance=guidance)
    if network.whole_steps and isinstance(preconditioning, Discrete):
        preconditioning = replace(preconditioning, quantize=True)
    height, width = (size, size) if size else network.side()
    feature: Callable[[], Tensor] | None = None
    if getattr(model, "mid_block", None) is not None:
        feature = bottleneck(model, "mid_block")
    denoiser: Denoiser = Preconditioned(network, preconditioning)
    guided = guidance != 1 and not network.distilled
    default: Any = None
    null: Any = torch.tensor(network.classes, device=device) if network.has_null_class else None
    if prompt is not None and not network.takes_text:
        raise InputError(f"{source} does not know text; leave the prompt out")
    if prompt is not None or (guided and network.takes_text):
        prompts = (prompt or "", negative_prompt)
        found = text_conditions(root, index, network, prompts, size=(height, width), allow_pickle=allow_pickle)
        default, null = found if prompt is not None else (None, found[1])
    if guided:
        if null is None:
            raise InputError(f"{source} cannot be guided: it has neither text nor a class that stands for none")
        denoiser = ClassifierFreeGuidance(denoiser, guidance, unconditional=null)
        if feature is not None:
            feature = _second_half(feature)
    return DenoisingModel(
        denoiser=_with_default(denoiser, default) if default is not None else denoiser,
        shape=(network.channels, height, width),
        sigma_min=preconditioning.sigma_min,
        sigma_max=preconditioning.sigma_max,
        name=Path(source).name,
        classes=network.classes,
        decode=_decoder(root, index, torch.device(device), allow_pickle),
        sigmas=preconditioning.sigmas if isinstance(preconditioning, Discrete) else None,
        feature=feature,
        extra={"source": str(source), "network": network.kind, "guidance": guidance, "prompt": prompt},
    )


def _class(folder: Path, known: tuple[str, ...]) -> Any:
    kind = str(read_config(folder / "config.json").get("_class_name"))
    if kind not in known:
        raise unknown_name(f"kind of network in {folder}:", kind, known)
    return getattr(import_diffusers(), kind)


def _denoising_part(root: Path, index: dict[str, Any]) -> Path:
    """Return the folder of the part that denoises."""
    if not index:
        return root
    for name in ("unet", "transformer"):
        if name in index:
            return root / name
    parts = ", ".join(name for name in index if not name.startswith("_"))
    raise InputError(f"{root / 'model_index.json'} names no unet and no transformer; give subfolder, one of: {parts}")


def _preconditioning(root: Path, folder: Path, given: str | None) -> Discrete | Flow:
    """Read from the scheduler's configuration how the network was trained."""
    files = [root / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"]
    file = next((file for file in files if file.exists()), None)
    if file is None and given is None:
        where = files[0] if (root / "model_index.json").exists() else files[1]
        raise InputError(f"{where} is missing, which says what the network predicts; give --prediction_type")
    config = read_config(file) if file else {}
    name = str(config.get("_class_name"))
    prediction = given or config.get("prediction_type") or "epsilon"
    if given is None and (name.startswith("FlowMatch") or config.get("use_flow_sigmas")):
        prediction = "flow_prediction"
    if prediction not in PREDICTIONS:
        raise unknown_name("prediction_type", str(prediction), PREDICTIONS)
    if prediction == "flow_prediction":
        return Flow(noise_scale=1000.0)
    if file and config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise InputError(f"{file} is of a {name}, without betas; models of that kind are not supported")
    scheduler = import_diffusers().DDPMScheduler
    try:
        # Any scheduler's betas are computed alike.
        betas = scheduler.from_config({key: value for key, value in config.items() if key in BETAS})
        abar = betas.alphas_cumprod.double()
        if abar[-1] == 0:  # no signal at all is an infinite noise level; the largest one is finite, as in diffusers
            abar[-1] = (abar[-2] / 2).clamp(max=2**-24)
        return Discrete(abar, cast(Any, prediction))
    except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{file} is damaged: {first_line(error)}") from error


def _decoder(
    root: Path, index: dict[str, Any], device: torch.device, allow_pickle: bool
) -> Callable[[Tensor], Tensor] | None:
    """Return what makes images of latents, or nothing for a model of pixels."""
    part = next((name for name in ("vae", "vqvae") if index.get(name, [None])[0]), None)
    if part is None:
        return None
    cls = _class(root / part, AUTOENCODERS)
    vae: Any = load_part(cls, root / part, dtype=torch.float32, allow_pickle=allow_pickle).to(device)
    if hasattr(vae, "enable_slicing"):
        vae.enable_slicing()  # one image at a time: the same images in less memory
    scale: float | Tensor = float(getattr(vae.config, "scaling_factor", None) or 1.0)
    shift: float | Tensor = float(getattr(vae.config, "shift_factor", None) or 0.0)
    mean, std = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:  # of each channel, instead of the shift
        scale = scale / torch.tensor(std, device=device).view(1, -1, 1, 1)
        shift = torch.tensor(mean, device=device).view(1, -1, 1, 1)

    def decode(latents: Tensor) -> Tensor:
        with torch.no_grad():
            images: Tensor = vae.decode(latents.float() / scale + shift, return_dict=False)[0]
        return images.clamp(-1, 1)

    return decode


def _with_default(denoiser: Denoiser, default: Any) -> Denoiser:
    def denoise(x: Tensor, sigma: Tensor, condition: Any = None, /) -> Tensor:
        return denoiser(x, sigma, default if condition is None else condition)

    return denoise


def _second_half(feature: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: feature().chunk(2)[1]
