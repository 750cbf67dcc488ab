"""What tests of the defence may ask for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from defense.redis_server import redis_server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The address of a real Redis; skipped where there is no redis-server."""
    with tempfile.TemporaryDirectory(prefix="redis-") as folder, redis_server(Path(folder)) as (url, _):
        yield url


@pytest.fixture
def empty_redis(redis_url: str) -> str:
    """The address of a real Redis that holds nothing."""
    import redis

    client = redis.from_url(redis_url)
    client.flushall()
    client.close()
    return redis_url
