"""How a guarded endpoint answers and what it refuses."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal, get_args

from stillroom.defense.service.store import Limits
from stillroom.errors import InputError, unknown_name

__all__ = ["Reply", "Settings"]

Reply = Literal["soft", "hard", "top-k"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a guarded endpoint answers and what it refuses.

    Args:
        admin_digest: Hash of the administrator's key, see :func:`~stillroom.defense.service.keys.hash_admin_key`.
        secret: At least 16 bytes that sign the admin page's cookies; replicas share it.
        metrics_digest: Hash of a key that opens ``/metrics`` only; the administrator's opens it in any case.
        answers: ``soft`` gives all probabilities, ``top-k`` the highest, ``hard`` the label alone.
        top_k: Probabilities given with ``top-k``.
        decimals: Digits probabilities are rounded to, so that the last bits tell nothing about how they came about.
        limits: What one account may ask.
        max_body: Bytes of a request.
        max_images: Images of a request.
        max_pixels: Pixels of a request's images together, before they are resized.
        body_seconds: Time a client has to send its request.
        session_seconds: Time after which the admin page asks for the key again.
        workers: Requests computed at once.
        waiting: Requests that may wait for a worker; more are refused.

    Raises:
        InputError: A value is impossible.
    """

    admin_digest: bytes
    secret: bytes
    metrics_digest: bytes | None = None
    answers: Reply = "soft"
    top_k: int = 5
    decimals: int = 6
    limits: Limits = field(default_factory=Limits)
    max_body: int = 8 * 2**20
    max_images: int = 64
    max_pixels: int = 16_000_000
    body_seconds: float = 20.0
    session_seconds: float = 8 * 3600.0
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    waiting: int = 64

    def __post_init__(self) -> None:
        if len(self.secret) < 16:
            raise InputError("the secret that signs cookies must have at least 16 bytes")
        for digest in (self.admin_digest, self.metrics_digest or self.admin_digest):
            if len(digest) != 32:
                raise InputError(f"a key's hash has {len(digest)} bytes instead of 32; make it with hash_admin_key")
        if self.answers not in get_args(Reply):
            raise unknown_name("kind of answers", self.answers, get_args(Reply))
        for name in ("top_k", "max_body", "max_images", "max_pixels", "workers", "waiting"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("body_seconds", "session_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 1 <= self.decimals <= 15:
            raise InputError(f"decimals is {self.decimals}; it must lie in 1..15")
        if not self.limits.per_minute > 0 or self.limits.burst < 1:
            raise InputError("limits must allow at least one image and refill at more than 0 per minute")

    @property
    def most_images(self) -> int:
        """Images a request may hold: a request above the burst would never be admitted."""
        return min(self.max_images, self.limits.burst)
