"""Uploaded images: as training decodes them, or refused in one line."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from stillroom.data.decode import Decoder
from stillroom.defense.service.images import decode_images
from stillroom.defense.service.refusal import Refusal

SHAPE = (3, 8, 8)


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (12, 9), **options: object) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(side: int) -> bytes:
    """A few kilobytes that announce side x side pixels, and would unpack to rows of them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + chunk(b"IEND", b"")


def refused(data: bytes | str, max_pixels: int = 10_000) -> Refusal:
    with pytest.raises(Refusal) as caught:
        decode_images([data], SHAPE, max_pixels=max_pixels)
    assert "\n" not in caught.value.detail
    return caught.value


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "LA", "1")),
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    ],
)
def test_images_are_decoded_as_in_training(kind: str, mode: str, channels: int) -> None:
    data = encoded(kind, mode)
    shape = (channels, 8, 8)
    if channels == 1 and mode not in ("L", "1"):
        data = encoded("PNG", "L")  # training refuses colour for grey models; the service converts, see below
    expected = Decoder(shape, resize=True)(data, "the image")
    assert (decode_images([data], shape, max_pixels=10_000)[0] == expected.transpose(2, 0, 1)).all()


def test_colour_is_turned_grey_for_a_grey_model() -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 0)).save(out, "PNG")
    pixels = decode_images([out.getvalue()], (1, 8, 8), max_pixels=64)
    assert pixels.shape == (1, 1, 8, 8)
    assert (pixels == round(0.299 * 200 + 0.587 * 100)).all()


def test_base64_and_bytes_mean_the_same() -> None:
    data = encoded("PNG")
    same = decode_images([data, base64.b64encode(data).decode()], SHAPE, max_pixels=10_000)
    assert (same[0] == same[1]).all()


def test_a_bomb_is_refused_by_its_header() -> None:
    assert refused(png_bomb(2_000)).status_code == 413
    assert refused(png_bomb(60_000)).status_code == 413  # beyond Pillow's own limit


def test_a_webp_canvas_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("the image was opened"))
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    lossless = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little") + bytes(5)
    lossy = b"VP8 " + struct.pack("<I", 10) + bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)
    for body in (extended, lossless, lossy):
        problem = refused(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body)
        assert problem.status_code == 413
        assert "268,402,689" in problem.detail


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}])
def test_the_size_read_from_a_webp_header_is_the_true_one(options: dict[str, object]) -> None:
    data = encoded("WEBP", **options)
    decode_images([data], SHAPE, max_pixels=12 * 9)
    assert "108" in refused(data, max_pixels=12 * 9 - 1).detail


def test_pixels_are_counted_over_the_whole_request() -> None:
    data = encoded("PNG")
    decode_images([data] * 3, SHAPE, max_pixels=3 * 108)
    with pytest.raises(Refusal, match="image 3 of 3"):
        decode_images([data] * 3, SHAPE, max_pixels=3 * 108 - 1)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused(kind: str) -> None:
    assert refused(encoded(kind)).status_code == 415


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_moving_pictures_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    assert "animated" in refused(out.getvalue()).detail


def test_more_than_eight_bits_are_refused() -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(out, "PNG")
    assert "8 bits" in refused(out.getvalue()).detail


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_images_are_refused(kind: str) -> None:
    whole = encoded(kind, size=(40, 40))
    for length in (12, 40, len(whole) // 2, len(whole) - 30):
        assert refused(whole[:length]).status_code in (415, 422)


def test_what_is_not_base64_is_refused() -> None:
    assert refused("not base64!").status_code == 400
    assert refused("é").status_code == 400


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    tail=st.binary(max_size=40),
)
@example(kind="PNG", changes=[], tail=b"")
def test_damaged_images_are_decoded_or_refused(kind: str, changes: list[tuple[float, int]], tail: bytes) -> None:
    data = bytearray(encoded(kind))
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    with contextlib.suppress(Refusal):  # and nothing else
        assert decode_images([bytes(data) + tail], SHAPE, max_pixels=100_000).shape == (1, *SHAPE)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]))
def test_arbitrary_bytes_are_refused(data: bytes, start: bytes) -> None:
    assert refused(start + data).status_code in (413, 415, 422)
