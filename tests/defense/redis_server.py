"""A real Redis for tests, on a unix socket in a folder of its own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def redis_server(
    folder: Path, *, appendonly: str = "yes", appendfsync: str = "everysec"
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run redis-server with its append-only file in ``folder``; yield its address and its process."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    import redis

    socket = folder / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""]
    options += ["--appendonly", appendonly, "--appendfsync", appendfsync]
    server = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=str(socket))
        for _ in range(500):
            with contextlib.suppress(redis.ConnectionError, redis.exceptions.BusyLoadingError):
                client.ping()
                break
            assert server.poll() is None, "redis-server ended as it started"
            time.sleep(0.01)
        client.close()
        yield f"unix://{socket}", server
    finally:
        server.kill()
        server.wait()
