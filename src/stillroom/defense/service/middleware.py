"""The guard around an application that exists already."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillroom.defense.contracts import Answers, Defence, Queries
from stillroom.defense.service.locks import AccountLocks
from stillroom.defense.service.logs import logger
from stillroom.errors import InputError

__all__ = ["GuardMiddleware"]

LARGEST = 64 * 2**20  # bytes of an answer


class GuardMiddleware:
    """ASGI middleware that defends the answers of any FastAPI, Starlette or LitServe application.

    The application puts the features and logits of each answer beside it, in whatever JSON it returns: every object
    that holds one of the named fields counts as an answer and must hold features and logits. The middleware takes
    these out, asks the defence, and writes its probabilities and label in place of the application's. It does so with
    every answer, altered or not, so that the two cannot be told apart. An answer it does not understand does not leave
    the house: the client gets a 500 in one line, and the log the reason.

    It does not see the images. Keyed poison is drawn from the features instead, which the same image has again.

    Args:
        app: The application.
        defence: Turns clean answers into those that leave the house.
        account: Names who asks, from the request's ASGI scope; None refuses the request with a 401.
        paths: Paths that are defended; others pass untouched.
        classes: Names of the classes, for applications that answer with names instead of positions.
        probabilities: Field of the probabilities: a list by class, or an object by name, all of them or the highest.
        label: Field of the predicted class, a position or a name.
        features: Field of the features, a list.
        logits: Field of the logits, a list.
        decimals: Digits probabilities are rounded to.

    Raises:
        InputError: No path is named.
    """

    def __init__(
        self,
        app: ASGIApp,
        defence: Defence,
        *,
        account: Callable[[Scope], str | None],
        paths: Collection[str],
        classes: Sequence[str] | None = None,
        probabilities: str = "probabilities",
        label: str = "label",
        features: str = "features",
        logits: str = "logits",
        decimals: int = 6,
    ) -> None:
        if isinstance(paths, str) or not paths:
            raise InputError("name the paths to defend in a list, such as paths=['/predict']")
        self.app, self.defence, self.account = app, defence, account
        self.paths = {path.rstrip("/") for path in paths}
        self.classes = None if classes is None else tuple(classes)
        self.probabilities, self.label, self.features, self.logits = probabilities, label, features, logits
        self.decimals = decimals
        self._locks = AccountLocks()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or connection."""
        if scope["type"] not in ("http", "websocket") or scope["path"].rstrip("/") not in self.paths:
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":  # what comes over it could not be read
            await send({"type": "websocket.close", "code": 1008})
            return
        account = self.account(scope)
        if account is None:
            await _say(send, 401, "nobody is known by this request")
            return
        start: Message | None = None
        passing, body = False, bytearray()

        async def sending(message: Message) -> None:
            nonlocal start, passing
            if passing:
                await send(message)
            elif message["type"] == "http.response.start":
                # Errors and redirects hold no answers.
                passing = not 200 <= message["status"] < 300
                start = message
                if passing:
                    await send(message)
            elif message["type"] == "http.response.body" and len(body) <= LARGEST:
                body.extend(message.get("body", b""))

        # A client that could ask for parts of an answer, or for a packed one, would get past the reading of it.
        spoiling = (b"accept-encoding", b"range", b"if-none-match", b"if-modified-since")
        headers = [(name, value) for name, value in scope["headers"] if name not in spoiling]
        extensions = {
            name: value
            for name, value in (scope.get("extensions") or {}).items()
            if name not in ("http.response.pathsend", "http.response.zerocopysend")
        }
        await self.app({**scope, "headers": headers, "extensions": extensions}, receive, sending)
        if passing or start is None:
            return
        try:
            told = await asyncio.to_thread(self._defend, account, bytes(body))
        except (_UnreadableError, InputError) as error:
            logger.error("an answer was held back", extra={"fields": {"path": scope["path"], "reason": str(error)}})
            await _say(send, 500, "the answer was held back")
            return
        kept = [(name, value) for name, value in start.get("headers", ()) if name.lower() not in _OF_THE_BODY]
        length = (b"content-length", str(len(told)).encode())
        await send({**start, "headers": [*kept, length]})
        await send({"type": "http.response.body", "body": told})

    def _defend(self, account: str, body: bytes) -> bytes:
        if len(body) > LARGEST:
            raise _UnreadableError("it is too long")
        try:
            root = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _UnreadableError("it is not JSON") from error
        fields = {self.probabilities, self.label, self.features, self.logits}
        records = list(_records(root, fields))
        if not records:
            raise _UnreadableError(f"it has none of the fields {', '.join(sorted(fields))}")
        features = self._taken(records, self.features)
        logits = self._taken(records, self.logits)
        if self.classes is not None and logits.shape[1] != len(self.classes):
            raise _UnreadableError(f"it has {logits.shape[1]} logits for {len(self.classes)} classes")
        queries = Queries(account, _stand_ins(features), features, logits)
        with self._locks[account]:
            answers = self.defence.answer(queries)
        for position, record in enumerate(records):
            self._rewrite(record, answers, position)
        poisoned = int(answers.altered.sum())
        logger.info("answered", extra={"fields": {"account": account, "images": len(records), "poisoned": poisoned}})
        return json.dumps(root, ensure_ascii=False, separators=(",", ":")).encode()

    def _taken(self, records: list[dict[str, Any]], field: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Take a field out of every answer and return it as [B, n]."""
        try:
            values = np.array([record.pop(field) for record in records], np.float32)
        except KeyError as error:
            raise _UnreadableError(f"an answer has no {field}") from error
        except (TypeError, ValueError) as error:
            raise _UnreadableError(f"{field} is not a list of numbers, as long in every answer") from error
        if values.ndim != 2 or values.shape[1] == 0 or not np.isfinite(values).all():
            raise _UnreadableError(f"{field} is not a list of finite numbers")
        return values

    def _rewrite(self, record: dict[str, Any], answers: Answers, position: int) -> None:
        row = answers.probabilities[position]
        best = int(row.argmax())
        if self.probabilities not in record and self.label not in record:
            raise _UnreadableError(f"an answer has neither {self.probabilities} nor {self.label}")
        if self.label in record:
            record[self.label] = best if self._kind(record[self.label]) == "position" else self._names()[best]
        if self.probabilities in record:
            given = record[self.probabilities]
            rounded = row.round(self.decimals).tolist()
            if isinstance(given, list) and len(given) == len(rounded):
                record[self.probabilities] = rounded
            elif isinstance(given, dict) and set(given) <= set(self._names()):
                names = self._names()
                # The highest, highest first; all of them in the order of the classes.
                order = (-row).argsort(kind="stable")[: len(given)] if len(given) < len(names) else range(len(names))
                record[self.probabilities] = {names[k]: rounded[k] for k in order}
            else:
                raise _UnreadableError(f"{self.probabilities} is neither one number for each class nor by known names")

    def _kind(self, label: object) -> Literal["position", "name"]:
        if isinstance(label, int) and not isinstance(label, bool):
            return "position"
        if isinstance(label, str):
            return "name"
        raise _UnreadableError(f"{self.label} is neither a number nor a name")

    def _names(self) -> tuple[str, ...]:
        if self.classes is None:
            raise _UnreadableError("it names classes; give the middleware classes=[...] in the order of the logits")
        return self.classes


class _UnreadableError(Exception):
    """Why an answer cannot be defended."""


_OF_THE_BODY = {b"content-length", b"transfer-encoding", b"etag", b"content-md5", b"digest", b"content-digest"}


def _records(value: object, fields: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects that hold one of the fields, in the order of the answer."""
    if isinstance(value, dict):
        if fields & value.keys():
            yield value
        else:
            for part in value.values():
                yield from _records(part, fields)
    elif isinstance(value, list):
        for part in value:
            yield from _records(part, fields)


def _stand_ins(features: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return what stands for the images [B, 1, 1, 32]: a digest of the features."""
    digests = [hashlib.sha256(np.ascontiguousarray(row).data).digest() for row in features]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(features), 1, 1, 32)


async def _say(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
