"""API keys: made once, shown once, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from typing import Protocol

from stillroom.defense.service.store import Key
from stillroom.errors import InputError

__all__ = ["ACCOUNT", "KEY_ID", "account_of", "hash_admin_key", "is_admin_key", "new_key"]

ACCOUNT = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$"  # names of accounts
KEY_ID = r"^[0-9a-f]{16}$"

_KEY = re.compile(r"sr_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_NOBODY = "0" * 16
_NO_DIGEST = bytes(32)  # what nothing hashes to


class _Keys(Protocol):
    def find_key(self, key_id: str) -> Key | None: ...


def new_key(account: str) -> tuple[str, Key]:
    """Make a key of an account: what the client sends as ``Authorization: Bearer sr_<id>_<secret>``, and what is kept.

    The secret has 256 random bits, so a plain SHA-256 of it cannot be searched: a slow hash would only slow requests.

    Raises:
        InputError: The account's name is empty, too long or has odd characters.

    Example:
        >>> text, key = new_key("acme")
        >>> text.startswith(f"sr_{key.key_id}_"), text.split("_", 2)[2].encode() in key.digest
        (True, False)
    """
    if not re.fullmatch(ACCOUNT, account, re.ASCII):
        raise InputError(f"{account!r} cannot name an account; use up to 64 letters, digits and ._@+-")
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return f"sr_{key_id}_{secret}", Key(key_id, _hash(secret), account, time.time())


def account_of(keys: _Keys, presented: str) -> str | None:
    """Return whose key this is, or None.

    Unknown, malformed and wrong keys cost the same: one look-up, one hash, one comparison that takes the same time
    wherever the digests differ.

    Args:
        keys: Finds a key by its public part, such as a store.
        presented: What the client sent.
    """
    found = _KEY.fullmatch(presented)
    key_id, secret = (found[1], found[2]) if found else (_NOBODY, presented)
    key = keys.find_key(key_id)
    same = hmac.compare_digest(_hash(secret), _NO_DIGEST if key is None else key.digest)
    return key.account if same and key is not None else None


def hash_admin_key(key: str) -> bytes:
    """Return the hash of an administrator's key, the only form a service keeps it in.

    Raises:
        InputError: The key is so short that it could be guessed.
    """
    if len(key) < 24:
        raise InputError("an administrator's key must have at least 24 characters; make one with secrets.token_urlsafe")
    return _hash(key)


def is_admin_key(presented: str, digest: bytes) -> bool:
    """Say whether a key has this hash, in constant time."""
    return hmac.compare_digest(_hash(presented), digest)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
