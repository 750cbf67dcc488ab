"""The job of ``stillroom defense serve``: a guarded classifier behind HTTP."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from stillroom.defense.endpoint import Endpoint
from stillroom.defense.guard import Guard
from stillroom.defense.poison import Style
from stillroom.defense.service.keys import hash_admin_key, new_key
from stillroom.defense.service.settings import Reply, Settings
from stillroom.defense.service.store import Limits, Store
from stillroom.errors import InputError, MissingExtraError, unknown_name
from stillroom.models.store import weights_hash
from stillroom.training.fabric import Device, torch_device

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["ADMIN_KEY", "SECRET", "Opened", "Protection", "add_account", "open_service", "open_store", "serve"]

Protection = Literal["d-add", "none"]
ADMIN_KEY = "STILLROOM_ADMIN_KEY"  # environment variables
SECRET = "STILLROOM_GUARD_SECRET"
CONNECTIONS = 1000  # at once; those without a key are refused only after they sent their head


@dataclass(frozen=True)
class Opened:
    """A service that is ready to run, and the administrator's key when it was made just now."""

    app: FastAPI
    admin_key: str | None


def open_store(place: str | None, guard: Guard, directory: Path) -> Store:
    """Open the account store of a guard.

    Args:
        place: A SQLite file, or ``redis://...``; ``accounts.sqlite`` beside the guard when not given.
        guard: Whose windows are kept.
        directory: Where the guard lies.

    Raises:
        InputError: The store belongs to another guard or does not answer.
    """
    if place is not None and place.startswith(("redis://", "rediss://", "unix://")):
        from stillroom.defense.service.redis_store import RedisStore

        return RedisStore(place, size=guard.window, width=guard.width, identity=guard.identity)
    from stillroom.defense.service.sqlite_store import SQLiteStore

    file = Path(place) if place is not None else directory / "accounts.sqlite"
    return SQLiteStore(file, size=guard.window, width=guard.width, identity=guard.identity)


def add_account(store: Store, account: str) -> str:
    """Make an API key for an account and return it; only its hash is kept.

    Raises:
        InputError: The name is empty, too long or has odd characters.
    """
    text, key = new_key(account)
    store.add_key(key)
    return text


def open_service(
    model: str | Path,
    store: Store,
    *,
    defence: Protection = "d-add",
    link: bool = False,
    poison: Style = "normal",
    answers: Reply = "soft",
    top_k: int = 5,
    per_minute: float = 600.0,
    burst: int = 200,
    max_body: int = 8 * 2**20,
    workers: int | None = None,
    device: Device = "auto",
) -> Opened:
    """Return the web application of a guarded model.

    The administrator's key and the guard's secret come from the environment variables ``STILLROOM_ADMIN_KEY`` and
    ``STILLROOM_GUARD_SECRET``; where they are not set they are made at the first start and kept in the store, the key
    as a hash, so that replicas on one store share them.

    Args:
        model: Directory that ``stillroom defense fit`` wrote.
        store: The accounts.
        defence: ``d-add``, or ``none`` to serve the model as it is, with keys and limits only.
        link: Also judge accounts by what all newcomers have in common, against colluding accounts.
        poison: What flagged accounts get: random logits (normal), or the model's own for other classes (permuted).
        answers: All probabilities, the highest, or the label alone.
        top_k: Probabilities given with ``top-k``.
        per_minute: Images an account may ask in a minute.
        burst: Images an account may ask at once.
        max_body: Bytes of a request.
        workers: Requests computed at once; as many as there are cores when not given.
        device: Where the model computes.

    Raises:
        InputError: There is no guard, or an option is impossible.
    """
    if defence not in get_args(Protection):
        raise unknown_name("defence", defence, get_args(Protection))
    from stillroom.defense.service.app import create_app

    endpoint = Endpoint.load(model, device=torch_device(device))
    guard = Guard.load(model, weights_sha256=weights_hash(endpoint.model))
    secret = _secret(store)
    admin_digest, admin_key = _admin(store)
    cores = os.cpu_count() or 1
    settings = Settings(
        admin_digest=admin_digest,
        secret=secret,
        answers=answers,
        top_k=top_k,
        limits=Limits(per_minute, burst),
        max_body=max_body,
        workers=min(8, cores) if workers is None else workers,
    )
    # Each worker computes on its own share of the cores: together they must not be more threads than there are.
    torch.set_num_threads(max(1, cores // settings.workers))
    protection = guard.defence(store, secret, link=link, poison=poison) if defence == "d-add" else None
    app = create_app(endpoint, guard.classes, endpoint.card.input_shape, protection, store, settings)
    if admin_key is not None:
        # Only now: a key that is kept but, because of an error above, never shown would lock everybody out.
        store.set_setting("admin_digest", admin_digest.hex())
    return Opened(app, admin_key)


def serve(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until interrupted.

    Raises:
        InputError: The address cannot be used.
        MissingExtraError: uvicorn is not installed.
    """
    if not 0 < port < 65536:
        raise InputError(f"port is {port}; it must lie in 1..65535")
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("uvicorn", "serve") from error
    from stillroom.defense.service.logs import log_config

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=log_config(),
        access_log=False,
        server_header=False,
        lifespan="on",
        limit_concurrency=CONNECTIONS,
    )
    server = uvicorn.Server(config)
    try:
        listening = config.bind_socket()
    except SystemExit:
        raise InputError(f"{host}:{port} cannot be used; another service may hold it: choose another --port") from None
    server.run([listening])


def _secret(store: Store) -> bytes:
    given = os.environ.get(SECRET)
    if given is not None:
        return given.encode()
    if store.setting("secret") is None:
        store.set_setting("secret", secrets.token_hex(32))
    return bytes.fromhex(store.setting("secret") or "")


def _admin(store: Store) -> tuple[bytes, str | None]:
    """Return the hash of the administrator's key, and the key when it is new."""
    given = os.environ.get(ADMIN_KEY)
    if given is not None:
        return hash_admin_key(given), None
    kept = store.setting("admin_digest")
    if kept is not None:
        return bytes.fromhex(kept), None
    key = secrets.token_urlsafe(32)
    return hash_admin_key(key), key
