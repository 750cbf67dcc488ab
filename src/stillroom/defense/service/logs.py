"""Logs as one JSON object per line, for machines to read."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from stillroom.files import plain

__all__ = ["JsonLines", "log_config", "logger"]

logger = logging.getLogger("stillroom.guard")


class JsonLines(logging.Formatter):
    """Writes a record as one line of JSON: time, level, message, and the fields handed over as ``extra={"fields": …}``.

    Example:
        >>> record = logging.makeLogRecord({"msg": "request", "levelname": "INFO", "fields": {"status": 200}})
        >>> json.loads(JsonLines().format(record))["status"]
        200
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **plain(getattr(record, "fields", {})),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=False)


def log_config(level: str = "INFO") -> dict[str, Any]:
    """Return the configuration for ``uvicorn.run(..., log_config=...)``: everything as JSON on standard error.

    uvicorn's own access log is silent: each request has its line already, with the account and without the query.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonLines}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "loggers": {
            "stillroom.guard": {"handlers": ["stderr"], "level": level, "propagate": False},
            "uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            "uvicorn.access": {"handlers": [], "level": "CRITICAL", "propagate": False},
        },
    }
