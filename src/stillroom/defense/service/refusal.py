"""Why a request is not answered, as the client is told."""

from __future__ import annotations

import math

from starlette.exceptions import HTTPException

__all__ = ["Refusal"]


class Refusal(HTTPException):
    """A request that is refused: a status, one line for the client, and one word for the metrics.

    Args:
        status: HTTP status.
        detail: The line.
        reason: The word.
        retry_after: Seconds after which asking again makes sense.
    """

    def __init__(self, status: int, detail: str, reason: str, *, retry_after: float | None = None) -> None:
        headers = {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        super().__init__(status, detail, headers)
        self.reason = reason
