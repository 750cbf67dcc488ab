"""Tiny randomly initialised models and pipelines of diffusers, made without any download."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


def unet(**options: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**{**UNET, "add_attention": False, **options}).eval()


def unet_condition(**options: Any) -> Any:
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    attention = {"cross_attention_dim": 8, "attention_head_dim": 2}
    return diffusers.UNet2DConditionModel(**{**UNET, **blocks, **attention, **options}).eval()


def transformer(**options: Any) -> Any:
    torch.manual_seed(0)
    shape = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "in_channels": 4,
        "num_layers": 1,
        "sample_size": 8,
        "num_embeds_ada_norm": 5,
        "norm_num_groups": 2,
    }
    model = diffusers.DiTTransformer2DModel(**{**shape, **options})
    return model.eval()


def autoencoder(**options: Any) -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        **options,
    ).eval()


def tokenizer() -> Any:
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {word: k for k, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8)


def encoder(kind: type = transformers.CLIPTextModel, width: int = 8) -> Any:
    torch.manual_seed(2)
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=16,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config).eval()


def stable_diffusion(**options: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=encoder(),
        tokenizer=tokenizer(),
        unet=unet_condition(**options),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
