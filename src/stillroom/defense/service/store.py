"""What a service remembers of its accounts, whichever database keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from stillroom.defense.windows import Windows

__all__ = ["Account", "Admission", "Decision", "Key", "Limits", "Order", "Status", "Store"]

Status = Literal["watched", "trusted", "banned"]
Order = Literal["score", "queries", "last_seen"]


@dataclass(frozen=True)
class Limits:
    """What one account may ask: a bucket of ``burst`` images, refilled at ``per_minute``."""

    per_minute: float = 600.0
    burst: int = 200


@dataclass(frozen=True)
class Key:
    """An API key as it is stored: never the secret, only its hash."""

    key_id: str  # the public part, first half of what the client sends
    digest: bytes  # of the secret half
    account: str
    created: float  # seconds since the epoch


@dataclass(frozen=True)
class Admission:
    """Whether an account may ask now."""

    status: Status
    retry_after: float  # seconds until the request would fit; 0 when it does


@dataclass(frozen=True)
class Decision:
    """A query that was flagged, with the evidence it was flagged on."""

    account: str
    time: float  # seconds since the epoch
    score: float
    threshold: float
    asked: int  # queries of the account until then
    poisoned: int  # answers of the request that were answered at random
    classes: dict[str, int] = field(default_factory=dict)  # predicted class -> queries in the window
    distances: dict[str, float] = field(default_factory=dict)  # predicted class -> squared Fréchet distance


@dataclass(frozen=True)
class Account:
    """An account as the administrator sees it."""

    name: str
    status: Status
    queries: int
    poisoned: int
    score: float | None  # the latest; None where none was due yet
    highest: float | None
    first_seen: float
    last_seen: float


class Store(Windows, Protocol):
    """The accounts of a service. Every method is safe to call from several threads.

    What ``append`` took in survives the process being killed as soon as it returned. ``append``, ``forget`` and
    ``size`` are those of :class:`~stillroom.defense.windows.Windows`.
    """

    local: bool  # whether looking up a key takes microseconds, and no other machine

    def admit(self, account: str, images: int, limits: Limits, now: float) -> Admission:
        """Charge an account for a request of so many images, unless it is banned or its bucket is too empty."""
        ...

    def record(self, account: str, *, score: float | None, poisoned: int, now: float) -> None:
        """Note the latest score and the answers poisoned; may reach the disk up to a second later."""
        ...

    def decide(self, decision: Decision) -> None:
        """Write down a flagged query."""
        ...

    def account(self, name: str) -> Account | None:
        """Return one account, if it ever asked or has a status."""
        ...

    def accounts(self, *, order: Order = "score", limit: int = 100, offset: int = 0) -> list[Account]:
        """Return accounts, highest first."""
        ...

    def decisions(self, *, account: str | None = None, limit: int = 100, offset: int = 0) -> list[Decision]:
        """Return flagged queries, newest first."""
        ...

    def counts(self) -> dict[str, int]:
        """Return how many accounts of each status there are, and of flagged queries (``decisions``)."""
        ...

    def set_status(self, account: str, status: Status) -> None:
        """Watch, trust or ban an account; watching it again forgets its window and its scores."""
        ...

    def add_key(self, key: Key) -> None:
        """Store a key."""
        ...

    def find_key(self, key_id: str) -> Key | None:
        """Return a key by its public part."""
        ...

    def keys(self, account: str) -> Sequence[Key]:
        """Return the keys of an account."""
        ...

    def remove_key(self, key_id: str) -> bool:
        """Remove a key and say whether there was one."""
        ...

    def setting(self, name: str) -> str | None:
        """Return a setting all replicas share, such as the threshold."""
        ...

    def set_setting(self, name: str, value: str) -> None:
        """Change a setting for all replicas."""
        ...

    def close(self) -> None:
        """Write what is still to be written and let go of the database."""
        ...
