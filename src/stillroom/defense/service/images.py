"""Uploaded images: encoded bytes of unknown origin to pixels of the model's shape."""

from __future__ import annotations

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stillroom.defense.service.refusal import Refusal

__all__ = ["decode_images"]

FORMATS = ("PNG", "JPEG", "WEBP")

# What Pillow's codecs raise on damaged bytes depends on the format and on the place of the damage.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def decode_images(parts: Sequence[bytes | str], shape: tuple[int, int, int], *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode PNG, JPEG and WebP images as training does: cut to the model's proportions around the centre, then scale.

    What a header announces is checked before anything is decoded, so a small file that would unpack to gigabytes costs
    nothing. Transparency is dropped, as in training.

    Args:
        parts: Encoded images, or their base64.
        shape: Channels (1 or 3), height and width the model takes.
        max_pixels: Of all images together, before they are scaled.

    Shapes:
        Returns [B, C, H, W].

    Raises:
        Refusal: An image is none, of another format, damaged, animated, of more than 8 bits per channel, or too large.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (10, 8), 7).save(file, "PNG")
        >>> decode_images([file.getvalue()], (3, 4, 4), max_pixels=80)[0, :, 0, 0].tolist()
        [7, 7, 7]
    """
    pixels = np.empty((len(parts), *shape), np.uint8)
    left = max_pixels
    for position, part in enumerate(parts):
        where = f"image {position + 1} of {len(parts)}"
        image, left = _open(_bytes(part, where), left, where)
        pixels[position] = _fit(image, shape, where)
    return pixels


def _bytes(part: bytes | str, where: str) -> bytes:
    if isinstance(part, bytes):
        return part
    try:
        return base64.b64decode(part, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"{where} is not base64", "format") from error


def _open(data: bytes, left: int, where: str) -> tuple[Image.Image, int]:
    """Read the header alone; return the image, not decoded yet, and the pixels still allowed."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        # Pillow's WebP reader allocates the whole canvas when it opens a file.
        left = _spend(left, _webp_pixels(data, where), where)
        counted = True
    else:
        counted = False
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise Refusal(415, f"{where} is not a PNG, JPEG or WebP image", "format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refusal(413, f"{where} has too many pixels", "pixels") from error
    except _DAMAGE as error:
        raise Refusal(422, f"{where} is damaged", "format") from error
    if not counted:
        left = _spend(left, image.width * image.height, where)
    if getattr(image, "is_animated", False):
        raise Refusal(422, f"{where} is animated; send single pictures", "format")
    if image.mode[0] in "IF":  # Pillow would clip, not scale
        raise Refusal(422, f"{where} has more than 8 bits per channel", "format")
    return image, left


def _spend(left: int, pixels: int, where: str) -> int:
    if pixels > left:
        raise Refusal(413, f"{where} has too many pixels: {pixels:,}, and {left:,} are left for the request", "pixels")
    return left - pixels


def _webp_pixels(data: bytes, where: str) -> int:
    """Read the size of the canvas from a WebP header (the container's specification, RFC 9649)."""
    kind, head = data[12:16], data[20:30]
    if len(head) == 10:
        if kind == b"VP8X":
            return (int.from_bytes(head[4:7], "little") + 1) * (int.from_bytes(head[7:10], "little") + 1)
        if kind == b"VP8L":
            bits = int.from_bytes(head[1:5], "little")
            return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
        if kind == b"VP8 ":
            width, height = struct.unpack("<HH", head[6:10])
            return int((width & 0x3FFF) * (height & 0x3FFF))
    raise Refusal(422, f"{where} is damaged", "format")


def _fit(image: Image.Image, shape: tuple[int, int, int], where: str) -> NDArray[np.uint8]:
    channels, height, width = shape
    try:
        with image:
            grey = image.mode in ("1", "L")
            plain = image.convert("L" if grey else "RGB")
            if plain.size != (width, height):
                plain = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
            plain = plain.convert("L" if channels == 1 else "RGB")
    except _DAMAGE as error:
        raise Refusal(422, f"{where} is damaged", "format") from error
    return np.asarray(plain).reshape(height, width, channels).transpose(2, 0, 1)
