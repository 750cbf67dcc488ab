"""The networks of diffusers as functions of scaled samples, encoded noise levels and a condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.errors import InputError, unknown_name

__all__ = ["NETWORKS", "DiffusersNetwork"]

NETWORKS = (
    "UNet2DModel",
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "SD3Transformer2DModel",
    "FluxTransformer2DModel",
)


class DiffusersNetwork(nn.Module):
    """One of the networks with one signature: ``(x, noise, condition) -> output``.

    Computes in the network's precision and answers in that of ``x``. A condition is int64 classes [B]; text embeddings
    [B, L, D]; or a mapping of the network's further arguments, each of B rows or of one.

    Args:
        model: The network.
        distilled_guidance: What a guidance-distilled network is told.

    Raises:
        InputError: The network does something else than denoise images.
    """

    def __init__(self, model: nn.Module, *, distilled_guidance: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.kind = type(model).__name__
        if self.kind not in NETWORKS:
            raise unknown_name("diffusers network", self.kind, NETWORKS)
        config: Any = model.config
        self.config, self.distilled_guidance = config, distilled_guidance
        self.flux = self.kind == "FluxTransformer2DModel"
        # Flux packs squares of 2x2 latents into channels.
        self.channels = int(config.in_channels) // (4 if self.flux else 1)
        outputs = config.out_channels or config.in_channels
        if outputs not in (config.in_channels, 2 * config.in_channels):
            raise InputError(
                f"the {self.kind} takes {config.in_channels} channels and returns {outputs}; only networks that "
                "denoise what they take can be sampled (inpainting and upscaling take more)"
            )
        if getattr(config, "time_embedding_type", "positional") == "fourier":
            raise InputError(f"the {self.kind} encodes noise levels as VE models do, which is not supported")
        self.classes = self._classes()

    def _classes(self) -> int:
        if self.kind == "DiTTransformer2DModel":
            return int(self.config.num_embeds_ada_norm)
        if self.kind == "UNet2DModel":
            if self.config.class_embed_type in ("timestep", "identity"):
                raise InputError("the UNet2DModel takes class embeddings instead of classes, which is not supported")
            return int(self.config.num_class_embeds or 0)
        return 0

    @property
    def has_null_class(self) -> bool:
        """Whether class ``classes`` stands for "none"."""
        return self.kind == "DiTTransformer2DModel"

    @property
    def distilled(self) -> bool:
        """Whether guidance is an argument of the network."""
        return bool(getattr(self.config, "guidance_embeds", False))

    @property
    def takes_text(self) -> bool:
        """Whether it needs text embeddings."""
        return self.kind in ("UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel")

    @property
    def whole_steps(self) -> bool:
        """Whether it knows whole time steps only."""
        return getattr(self.config, "time_embedding_type", None) == "learned"

    def side(self) -> tuple[int, int]:
        """Return height and width of the samples it was trained on.

        Raises:
            InputError: Its configuration does not say.
        """
        size = 128 if self.flux else getattr(self.config, "sample_size", None)  # Flux: as its pipeline's default
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2:
            return int(size[0]), int(size[1])
        raise InputError(f"the {self.kind}'s config.json names no sample_size; give size")

    def forward(self, x: Tensor, noise: Tensor, condition: Any = None) -> Tensor:
        """Return the network's prediction.

        Shapes:
            x: [B, C, H, W]; noise: [B] or [1], the time step.
            Returns [B, C, H, W].

        Raises:
            InputError: The samples have other channels, or the condition does not suit the network.
        """
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise InputError(
                f"the {self.kind} denoises samples of {self.channels} channels [B, {self.channels}, H, W], "
                f"got {list(x.shape)}"
            )
        parameter = next(self.model.parameters())
        sample, time = x.to(parameter.dtype), noise.float().reshape(-1).expand(len(x))
        if self.whole_steps:
            time = time.round().long()
        arguments = self._arguments(condition, len(x), parameter)
        if self.flux:
            return self._flux(sample, time / 1000, arguments).to(x.dtype)
        output: Tensor = self.model(sample, timestep=time, **arguments, return_dict=False)[0]
        return output[:, : self.channels].to(x.dtype)

    def _arguments(self, condition: Any, batch: int, like: Tensor) -> dict[str, Any]:
        if self.takes_text:
            if isinstance(condition, Tensor):
                condition = {"encoder_hidden_states": condition}
            if not isinstance(condition, Mapping):
                raise InputError(f"the {self.kind} needs a prompt, or text embeddings [B, L, D] as its condition")
            given: dict[str, Any] = {name: _rows(value, batch).to(like) for name, value in condition.items()}
            if {"text_embeds", "time_ids"} & set(given):  # of SDXL
                given["added_cond_kwargs"] = {name: given.pop(name) for name in ("text_embeds", "time_ids")}
            return given
        if self.classes:
            if condition is None and not self.has_null_class:
                raise InputError(f"the {self.kind} needs classes [B] below {self.classes} as its condition")
            if condition is None:
                return {"class_labels": torch.full((batch,), self.classes, device=like.device)}
            return {"class_labels": _rows(condition, batch)}
        if condition is not None:
            raise InputError(f"the {self.kind} is unconditional, but a condition was given")
        return {}

    def _flux(self, x: Tensor, time: Tensor, arguments: dict[str, Any]) -> Tensor:
        batch, channels, height, width = x.shape
        if height % 2 or width % 2:
            raise InputError(f"the {self.kind} needs samples of even height and width, got {height}x{width}")
        packed = nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)  # [B, H W / 4, 4 C]
        rows, columns = torch.meshgrid(
            torch.arange(height // 2, device=x.device), torch.arange(width // 2, device=x.device), indexing="ij"
        )
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).to(x.dtype)
        text = arguments["encoder_hidden_states"]
        told = x.new_full((batch,), self.distilled_guidance) if self.distilled else None
        output = self.model(
            packed,
            timestep=time,
            img_ids=places,
            txt_ids=x.new_zeros(text.shape[1], 3),
            guidance=told,
            **arguments,
            return_dict=False,
        )[0]
        square = output.transpose(1, 2).reshape(batch, 4 * channels, height // 2, width // 2)
        return nn.functional.pixel_shuffle(square, 2)


def _rows(value: Tensor, batch: int) -> Tensor:
    """Repeat a condition of one row for every sample.

    Raises:
        InputError: It has another number of rows.
    """
    value = value.reshape(1) if value.ndim == 0 else value
    if len(value) not in (1, batch):
        raise InputError(f"the condition has {len(value)} rows for {batch} samples")
    return value.expand(batch, *value.shape[1:])
