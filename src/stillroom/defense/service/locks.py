"""One lock per account, without keeping one for each."""

from __future__ import annotations

from threading import Lock

__all__ = ["AccountLocks"]


class AccountLocks:
    """Locks that accounts share by their hash: bounded, and two accounts rarely wait for each other.

    Example:
        >>> locks = AccountLocks()
        >>> locks["acme"] is locks["acme"]
        True
    """

    def __init__(self, count: int = 256) -> None:
        self._locks = [Lock() for _ in range(count)]

    def __getitem__(self, account: str) -> Lock:
        """Return the lock of an account."""
        return self._locks[hash(account) % len(self._locks)]
