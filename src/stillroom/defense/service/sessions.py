"""Sessions of the admin page: a signed cookie that runs out, and a token for each form."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

__all__ = ["Sessions"]


class Sessions:
    """Signs and checks sessions; nothing is stored, so every replica with the same secret accepts them.

    Args:
        secret: Signs; replicas share it.
        admin_digest: Hash of the administrator's key; with another key, older sessions end.
        seconds: How long a session lasts.

    Example:
        >>> sessions = Sessions(b"0123456789abcdef", bytes(32), 60)
        >>> cookie = sessions.begin(now=1000)
        >>> sessions.valid(cookie, now=1059), sessions.valid(cookie, now=1061), sessions.valid("1.2.3", now=0)
        (True, False, False)
    """

    def __init__(self, secret: bytes, admin_digest: bytes, seconds: float) -> None:
        self._key = hmac.new(secret, b"stillroom admin page" + admin_digest, hashlib.sha256).digest()
        self.seconds = seconds

    def begin(self, now: float) -> str:
        """Return the cookie of a new session."""
        said = f"{int(now + self.seconds)}.{secrets.token_hex(16)}"
        return f"{said}.{self._sign('session', said)}"

    def valid(self, cookie: str, now: float) -> bool:
        """Say whether a cookie is ours and has not run out."""
        found = re.fullmatch(r"([0-9]{1,12})\.[0-9a-f]{32}\.[0-9a-f]{64}", cookie, re.ASCII)
        said, _, mac = cookie.rpartition(".")
        return found is not None and hmac.compare_digest(self._sign("session", said), mac) and now < int(found[1])

    def form_token(self, cookie: str) -> str:
        """Return what a form of this session must send along: another site cannot know it."""
        return self._sign("form", cookie)

    def is_form_token(self, token: str, cookie: str) -> bool:
        """Say whether a form was made for this session."""
        return hmac.compare_digest(self.form_token(cookie).encode(), token.encode("utf-8", "surrogatepass"))

    def _sign(self, purpose: str, said: str) -> str:
        return hmac.new(self._key, f"{purpose}:{said}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
