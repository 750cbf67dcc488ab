"""Networks the pipeline's tests name by import path."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer


def vit(num_classes: int, in_channels: int, image_size: int) -> VisionTransformer:
    """A transformer of four small blocks, 4×4 or 7×7 patches."""
    return VisionTransformer(
        img_size=image_size,
        patch_size=2 if image_size < 16 else 4,
        in_chans=in_channels,
        num_classes=num_classes,
        embed_dim=16,
        depth=4,
        num_heads=2,
    )
