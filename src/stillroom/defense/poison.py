"""Answers that teach a thief nothing: random logits, the same for the same query."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np

from stillroom.defense.contracts import Floats, Images, Queries
from stillroom.errors import InputError

__all__ = ["KeyedPoison", "fresh_poison"]


class KeyedPoison:
    """Random logits drawn anew for each image, but the same whenever the account sends the image again.

    Fresh noise on each repeat would betray the defence, and repeats of a flagged account could be told from the answers
    the model gives. The generator is seeded with HMAC-SHA256(secret, account, image), so that who lacks the secret can
    neither predict nor recognise the draw.

    Args:
        secret: At least 16 bytes, kept beside the model and never logged; replicas share it.

    Example:
        >>> queries = Queries("eve", np.zeros((2, 1, 4, 4), np.uint8), np.zeros((2, 3)), np.zeros((2, 10)))
        >>> logits = KeyedPoison(b"0123456789abcdef")(queries)
        >>> logits.shape, bool((logits[0] == logits[1]).all())
        ((2, 10), True)
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise InputError("the poison's secret must have at least 16 bytes")
        self._secret = secret

    def __call__(self, queries: Queries) -> Floats:
        """Return N(0, 1) logits [B, K] for the queries."""
        classes = queries.logits.shape[1]
        return np.stack([self._draw(queries.account, image, classes) for image in queries.images])

    def _draw(self, account: str, image: Images, classes: int) -> Floats:
        said = account.encode()
        mac = hmac.new(self._secret, len(said).to_bytes(8, "big") + said, hashlib.sha256)
        mac.update(f"{image.dtype}{image.shape}".encode())
        mac.update(np.ascontiguousarray(image).data)
        seed = int.from_bytes(mac.digest()[:16], "big")
        return np.random.Generator(np.random.Philox(key=seed)).standard_normal(classes)


def fresh_poison(queries: Queries) -> Floats:
    """Return N(0, 1) logits [B, K] from numpy's global generator: the paper's poisoning, another at each repeat."""
    return np.random.standard_normal(queries.logits.shape)
