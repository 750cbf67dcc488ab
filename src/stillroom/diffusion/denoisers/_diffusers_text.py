"""Turn a prompt into the condition of a diffusers network, with the text encoders of its pipeline's folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.diffusion.denoisers._diffusers_folder import import_diffusers, load_part, read_config
from stillroom.diffusion.denoisers._diffusers_networks import DiffusersNetwork
from stillroom.errors import InputError, MissingExtraError
from stillroom.models.weights import first_line

__all__ = ["text_conditions"]

Condition = Tensor | dict[str, Tensor]


def text_conditions(
    root: Path,
    index: dict[str, Any],
    network: DiffusersNetwork,
    prompts: tuple[str, str],
    *,
    size: tuple[int, int],
    allow_pickle: bool,
) -> tuple[Condition, Condition]:
    """Return the network's condition, of one row, for a prompt and for the negative prompt.

    Args:
        root: The pipeline's folder.
        index: Its ``model_index.json``.
        network: The network, on its device.
        prompts: The prompt and the negative one.
        size: Height and width of the samples, which some networks are told.
        allow_pickle: Take pickled weights of text encoders.

    Raises:
        InputError: The folder has no text encoder, or a part of it is missing or damaged.
    """
    if not index.get("text_encoder") or not index.get("tokenizer"):
        raise InputError(f"{root} has no text encoder; leave the prompt out and give text embeddings as the condition")
    for name in ("text_encoder", "tokenizer"):
        if not (root / name).is_dir():
            raise InputError(f"{root / name} is missing; the folder is no complete diffusers model")
    parameter = next(network.parameters())
    with torch.no_grad():
        if network.kind == "UNet2DConditionModel" and not getattr(network.config, "addition_embed_type", None):
            return _one_encoder(root, index, prompts, parameter, allow_pickle)
        return _several_encoders(root, index, network, prompts, size, parameter, allow_pickle)


def _one_encoder(
    root: Path, index: dict[str, Any], prompts: tuple[str, str], like: Tensor, allow_pickle: bool
) -> tuple[Condition, Condition]:
    try:
        import transformers
    except ImportError:
        raise MissingExtraError("transformers", "diffusion") from None
    cls = getattr(transformers, str(index["text_encoder"][1]), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise InputError(f"{root / 'model_index.json'} names an unknown text encoder {index['text_encoder'][1]!r:.60}")
    encoder: Any = load_part(cls, root / "text_encoder", dtype=like.dtype, allow_pickle=allow_pickle).to(like.device)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(root / "tokenizer", local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{root / 'tokenizer'} cannot be loaded: {first_line(error)}") from error
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    # Most encoders were trained with padding in sight; those that were not say so.
    masked = getattr(encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask.to(like.device) if masked else None
    embedded = encoder(tokens.input_ids.to(like.device), attention_mask=mask)[0]
    return embedded[:1], embedded[1:]


def _several_encoders(
    root: Path,
    index: dict[str, Any],
    network: DiffusersNetwork,
    prompts: tuple[str, str],
    size: tuple[int, int],
    like: Tensor,
    allow_pickle: bool,
) -> tuple[Condition, Condition]:
    """Ask the pipeline itself, which knows how its encoders work together."""
    diffusers = import_diffusers()
    cls: Any = getattr(diffusers, str(index.get("_class_name")), None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline)):
        raise InputError(f"{root / 'model_index.json'} names an unknown pipeline {index.get('_class_name')!r:.60}")
    part = "unet" if network.kind == "UNet2DConditionModel" else "transformer"
    loader: Any = cls
    absent = {name: None for name, value in index.items() if isinstance(value, list) and value[:1] == [None]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions prefer another name for torch_dtype
            pipeline = loader.from_pretrained(
                root,
                local_files_only=True,
                low_cpu_mem_usage=False,
                use_safetensors=None if allow_pickle else True,
                torch_dtype=like.dtype,
                **{**absent, part: network.model, "vae": None},
            )
        pipeline.to(like.device)
        if network.flux:
            rows = [pipeline.encode_prompt(text, None, device=like.device)[:2] for text in prompts]
        else:
            more = (None, None) if part == "transformer" else (None,)
            told = pipeline.encode_prompt(prompts[0], *more, device=like.device, negative_prompt=prompts[1])
            rows = [(told[0], told[2]), (told[1], told[3])]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(f"the prompt cannot be encoded with {root}: {first_line(error)}") from error
    if part == "transformer":
        found = [{"encoder_hidden_states": states, "pooled_projections": pooled} for states, pooled in rows]
    else:
        height, width = (side * _scale(root) for side in size)
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=like.device)
        found = [{"encoder_hidden_states": s, "text_embeds": pooled, "time_ids": sizes} for s, pooled in rows]
    return found[0], found[1]


def _scale(root: Path) -> int:
    """Pixels per latent, along one side."""
    blocks = read_config(root / "vae" / "config.json").get("block_out_channels")
    return 1 << (len(blocks) - 1 if isinstance(blocks, list) and blocks else 0)
