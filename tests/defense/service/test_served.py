"""The application behind a real server, over real sockets."""

from __future__ import annotations

import itertools
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from defense.redis_server import redis_server
from defense.service.application import (
    ADMIN,
    WIDTH,
    WINDOW,
    Service,
    as_json,
    foreign_images,
    known_images,
    observe,
)
from defense.service.serving import served
from stillroom.defense.contracts import Images, Observed
from stillroom.defense.service.redis_store import RedisStore


def exchange(address: str, request: bytes, *, then_close: bool = False) -> bytes:
    """Send bytes and return all that comes back until the server closes."""
    host = urlsplit(address)
    with socket.create_connection((host.hostname, host.port), timeout=10) as connection:
        connection.sendall(request)
        if then_close:
            connection.shutdown(socket.SHUT_WR)
        got = bytearray()
        while part := connection.recv(65_536):
            got += part
            if b"\r\n\r\n" in got and got.endswith(b"}"):
                break
        return bytes(got)


def test_accounts_ask_side_by_side_and_restarts_remember_them(tmp_path: Path) -> None:
    service = Service(tmp_path)
    keys = {name: service.make_key(name) for name in ("eve", "bob", "carol")}

    def ask(address: str, name: str) -> list[int]:
        draw = foreign_images if name == "eve" else known_images
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {keys[name]}"}) as client:
            return [client.post("/v1/predict", json=as_json(draw(2, seed))).status_code for seed in range(10)]

    with served(service.app) as address, ThreadPoolExecutor(3) as pool:
        statuses = list(pool.map(lambda name: ask(address, name), keys))
    assert statuses == [[200] * 10] * 3
    again = Service(tmp_path)  # the first closed its store when the server ended
    accounts = {account.name: account for account in again.store.accounts()}
    assert {name: account.queries for name, account in accounts.items()} == dict.fromkeys(keys, 20)
    assert accounts["eve"].poisoned == 17
    assert accounts["bob"].poisoned == accounts["carol"].poisoned == 0
    again.store.close()


def test_two_replicas_on_one_redis_decide_as_one_process(tmp_path: Path, empty_redis: str) -> None:
    stores = [RedisStore(empty_redis, size=WINDOW, width=WIDTH, identity="test") for _ in range(2)]
    replicas = [Service(tmp_path, store=store) for store in stores]
    alone = Service(tmp_path)
    requests = [as_json(draw(3, seed)) for seed in range(6) for draw in (known_images, foreign_images)]
    with served(replicas[0].app) as first, served(replicas[1].app) as second, served(alone.app) as single:
        shared = {"Authorization": f"Bearer {replicas[0].key}"}  # made by one, known to both
        own = {"Authorization": f"Bearer {alone.key}"}
        for body, replica in zip(requests, itertools.cycle([first, second])):
            expected = httpx.post(f"{single}/v1/predict", json=body, headers=own)
            assert httpx.post(f"{replica}/v1/predict", json=body, headers=shared).json() == expected.json()
        flagged = [decision.score for decision in stores[0].decisions()]
        assert flagged == pytest.approx([decision.score for decision in alone.store.decisions()])
        assert len(flagged) > 3
        replicas[1].store.set_status("alice", "banned")
        assert httpx.post(f"{first}/v1/predict", json=requests[0], headers=shared).status_code == 403


def test_without_its_redis_nothing_is_answered(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with redis_server(tmp_path_factory.mktemp("redis")) as (url, database):
        service = Service(tmp_path, store=RedisStore(url, size=WINDOW, width=WIDTH, identity="test"))
        with served(service.app) as address:
            headers = {"Authorization": f"Bearer {service.key}"}
            body = as_json(known_images(1))
            assert httpx.post(f"{address}/v1/predict", json=body, headers=headers).status_code == 200
            database.kill()
            database.wait()
            for answer in (
                httpx.post(f"{address}/v1/predict", json=body, headers=headers),
                httpx.get(f"{address}/readyz"),
                httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {ADMIN}"}),
            ):
                assert answer.status_code == 503
                assert url.removeprefix("unix://") not in answer.text
            assert httpx.get(f"{address}/healthz").status_code == 200


def test_bodies_are_bounded_on_the_wire(tmp_path: Path) -> None:
    service = Service(tmp_path, max_body=50_000, body_seconds=0.3)
    head = (
        f"POST /v1/predict HTTP/1.1\r\nHost: guard\r\nAuthorization: Bearer {service.key}\r\n"
        "Content-Type: application/json\r\nConnection: close\r\n"
    ).encode()
    with served(service.app) as address:
        announced = exchange(address, head + b"Content-Length: 1000000000\r\n\r\n")
        chunked = exchange(
            address, head + b"Transfer-Encoding: chunked\r\n\r\n" + b"ea60\r\n" + b" " * 60_000 + b"\r\n"
        )
        slow = exchange(address, head + b"Content-Length: 100\r\n\r\n{")
        exchange(address, head + b"Content-Length: 100\r\n\r\n{", then_close=True)  # gone in the middle
        malformed = exchange(address, head + b"Content-Length: -5\r\n\r\n")
        assert httpx.get(f"{address}/healthz").status_code == 200
    assert announced.startswith(b"HTTP/1.1 413")
    assert chunked.startswith(b"HTTP/1.1 413")
    assert slow.startswith(b"HTTP/1.1 408")
    assert malformed.startswith(b"HTTP/1.1 400")
    for answer in (announced, chunked, slow, malformed):
        assert b"Traceback" not in answer


def test_a_slow_model_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    asked, release = threading.Event(), threading.Event()

    def slow(images: Images) -> Observed:
        if images.any():
            asked.set()
            release.wait(30)
        return observe(images)

    service = Service(tmp_path, observe=slow, workers=1)
    with served(service.app) as address, ThreadPoolExecutor(1) as pool:
        headers = {"Authorization": f"Bearer {service.key}"}
        waiting = pool.submit(httpx.post, f"{address}/v1/predict", json=as_json(known_images(1)), headers=headers)
        assert asked.wait(30)
        assert httpx.get(f"{address}/healthz").status_code == 200
        assert not waiting.done()
        release.set()
        assert waiting.result().status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/admin/../v1/admin/accounts", "/admin/style.css/../../x"])
def test_what_does_not_exist_is_not_found(path: str, tmp_path: Path) -> None:
    with served(Service(tmp_path).app) as address:
        answer = exchange(address, f"GET {path} HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404")
    assert answer.endswith(b'{"detail":"Not Found"}')
