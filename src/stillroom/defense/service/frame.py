"""Around every request: size and time limits, one line in the log, no stack trace to the client."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillroom.defense.service.logs import logger
from stillroom.defense.service.metrics import Metrics
from stillroom.defense.service.refusal import Refusal
from stillroom.defense.service.settings import Settings

__all__ = ["Frame", "note"]

SMALL_BODY = 64 * 2**10  # of whatever is no upload of images
PREDICT = "/v1/predict"


def note(scope: Scope, **fields: Any) -> None:
    """Add fields to the request's line in the log."""
    scope["stillroom.note"].update(fields)


class Frame:
    """ASGI middleware around the whole application.

    Args:
        app: What it wraps.
        settings: Limits of size and time.
        metrics: Counts requests.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, started, status = secrets.token_hex(8), time.perf_counter(), 0
        said = scope["stillroom.note"] = {"request": request}

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        try:
            await self.app(scope, self._limited(scope, receive), sending)
        except ClientDisconnect:
            status = status or 499  # nobody is there to read it; the number is for the log
        except Exception:
            logger.exception("request failed", extra={"fields": said})
            if status == 0:
                await _answer(sending, 500, f"internal error; request {request}")
            status = 500
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            client = scope["client"][0] if scope.get("client") else None
            line = {"method": scope["method"], "path": scope["path"], "client": client}
            line |= {"status": status, "ms": round(1000 * seconds, 3)}
            logger.info("request", extra={"fields": {**line, **said}})

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """Return ``receive`` that refuses a body too long, by what it announces or by what comes, or too slow."""
        limit = self.settings.max_body if scope["path"] == PREDICT else SMALL_BODY
        announced = dict(scope["headers"]).get(b"content-length", b"")
        deadline = time.monotonic() + self.settings.body_seconds
        received, more = 0, True

        async def receiving() -> Message:
            nonlocal received, more
            if not more:
                return await receive()
            if announced.isdigit() and int(announced) > limit:
                raise Refusal(413, f"the request has more than {limit} bytes", "size")
            try:
                message = await asyncio.wait_for(receive(), deadline - time.monotonic())
            except TimeoutError as error:
                raise Refusal(408, "the request came too slowly", "slow") from error
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
            if received > limit:
                raise Refusal(413, f"the request has more than {limit} bytes", "size")
            return message

        return receiving


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
