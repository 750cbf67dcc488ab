"""Answers that teach a thief nothing: random logits, the same for the same query."""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal, get_args

import numpy as np

from stillroom.defense.contracts import Floats, Images, Queries
from stillroom.errors import InputError, unknown_name

__all__ = ["KeyedPoison", "Style", "fresh_poison"]

Style = Literal["normal", "permuted"]


class KeyedPoison:
    """Random logits drawn anew for each image, but the same whenever the account sends the image again.

    Fresh noise on each repeat would betray the defence, and repeats of a flagged account could be told from the answers
    the model gives. The generator is seeded with HMAC-SHA256(secret, account, image), so that who lacks the secret can
    neither predict nor recognise the draw.

    Args:
        secret: At least 16 bytes, kept beside the model and never logged; replicas share it.
        style: ``normal`` draws N(0, 1) logits, as the paper does; they are flatter than a trained model's, so that a
            thief can tell that he was caught. ``permuted`` hands the model's own logits to other classes: as confident
            as ever, and wrong.

    Raises:
        InputError: The secret is too short, or there is no such style.

    Example:
        >>> queries = Queries("eve", np.zeros((2, 1, 4, 4), np.uint8), np.zeros((2, 3)), np.zeros((2, 10)))
        >>> logits = KeyedPoison(b"0123456789abcdef")(queries)
        >>> logits.shape, bool((logits[0] == logits[1]).all())
        ((2, 10), True)
    """

    def __init__(self, secret: bytes, *, style: Style = "normal") -> None:
        if len(secret) < 16:
            raise InputError("the poison's secret must have at least 16 bytes")
        if style not in get_args(Style):
            raise unknown_name("style of poison", style, get_args(Style))
        self._secret, self.style = secret, style

    def __call__(self, queries: Queries) -> Floats:
        """Return logits [B, K] that know nothing of the queries' classes."""
        drawn = []
        for image, logits in zip(queries.images, queries.logits, strict=True):
            stream = self._stream(queries.account, image)
            drawn.append(stream.standard_normal(len(logits)) if self.style == "normal" else stream.permutation(logits))
        return np.stack(drawn).astype(np.float64)

    def _stream(self, account: str, image: Images) -> np.random.Generator:
        said = account.encode()
        mac = hmac.new(self._secret, len(said).to_bytes(8, "big") + said, hashlib.sha256)
        mac.update(f"{image.dtype}{image.shape}".encode())
        mac.update(np.ascontiguousarray(image).data)
        return np.random.Generator(np.random.Philox(key=int.from_bytes(mac.digest()[:16], "big")))


def fresh_poison(queries: Queries) -> Floats:
    """Return N(0, 1) logits [B, K] from numpy's global generator: the paper's poisoning, another at each repeat."""
    return np.random.standard_normal(queries.logits.shape)
