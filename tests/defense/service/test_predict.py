"""POST /v1/predict: what is answered, to whom, and what is refused before anything is spent on it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from defense.service.application import (
    CLASSES,
    MakeService,
    Service,
    as_files,
    as_json,
    foreign_images,
    known_images,
    observe,
    png,
)
from defense.service.test_images import png_bomb
from stillroom.defense.contracts import Images, Observed, softmax
from stillroom.defense.service.keys import hash_admin_key
from stillroom.defense.service.logs import JsonLines
from stillroom.defense.service.store import Limits
from stillroom.errors import InputError

pytestmark = pytest.mark.anyio


def probabilities(response: httpx.Response) -> list[list[float]]:
    assert response.status_code == 200, response.text
    return [[answer["probabilities"][name] for name in CLASSES] for answer in response.json()["predictions"]]


def clean(images: Images) -> list[list[float]]:
    return softmax(observe(images).logits).round(6).tolist()


async def test_an_honest_account_gets_the_models_answers(service: Service) -> None:
    images = known_images(24)
    async with service.client() as client:
        for start in range(0, 24, 6):
            some = images[start : start + 6]
            response = await client.post("/v1/predict", json=as_json(some))
            assert probabilities(response) == clean(some)
            best = observe(some).logits.argmax(1)
            assert [answer["label"] for answer in response.json()["predictions"]] == [CLASSES[k] for k in best]


async def test_a_stealing_account_gets_random_answers_of_the_same_form(service: Service) -> None:
    images = foreign_images(12)
    async with service.client() as client:
        answered = (await client.post("/v1/predict", json=as_json(images))).json()["predictions"]
    truth = clean(images)
    got = [[answer["probabilities"][name] for name in CLASSES] for answer in answered]
    assert got[:3] == truth[:3]  # no window of four yet
    assert all(a != b for a, b in zip(got[3:], truth[3:], strict=True))
    for answer in answered:
        assert list(answer) == ["label", "probabilities"]
        assert list(answer["probabilities"]) == list(CLASSES)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert all(round(p, 6) == p for p in answer["probabilities"].values())


async def test_a_poisoned_answer_is_the_same_again_for_the_account_and_another_for_others(service: Service) -> None:
    images = foreign_images(8)
    async with service.client() as client:
        first = probabilities(await client.post("/v1/predict", json=as_json(images)))
        again = probabilities(await client.post("/v1/predict", json=as_json(images)))
    async with service.client(service.make_key("bob")) as client:
        other = probabilities(await client.post("/v1/predict", json=as_json(images)))
    assert first[3:] == again[3:]
    assert all(a != b for a, b in zip(first[3:], other[3:], strict=True))


async def test_accounts_are_watched_each_for_itself(service: Service) -> None:
    async with service.client() as thief, service.client(service.make_key("bob")) as honest:
        for seed in range(4):
            await thief.post("/v1/predict", json=as_json(foreign_images(4, seed)))
            images = known_images(4, seed)
            assert probabilities(await honest.post("/v1/predict", json=as_json(images))) == clean(images)
    thieves, honest_account = service.store.account("alice"), service.store.account("bob")
    assert thieves is not None
    assert honest_account is not None
    assert thieves.poisoned == 13
    assert honest_account.poisoned == 0


async def test_files_and_base64_are_answered_alike(service: Service) -> None:
    images = known_images(3)
    async with service.client() as client:
        as_text = await client.post("/v1/predict", json=as_json(images))
        as_parts = await client.post("/v1/predict", files=as_files([png(image) for image in images]))
    assert as_text.json() == as_parts.json()


async def test_hard_answers_hold_labels_alone(make_service: MakeService) -> None:
    images = known_images(3)
    async with make_service(answers="hard").client() as client:
        predictions = (await client.post("/v1/predict", json=as_json(images))).json()["predictions"]
    assert [p["label"] for p in predictions] == [CLASSES[k] for k in observe(images).logits.argmax(1)]
    assert all(p["probabilities"] is None for p in predictions)


async def test_top_k_answers_hold_the_highest_probabilities(make_service: MakeService) -> None:
    images = known_images(5)
    async with make_service(answers="top-k", top_k=2).client() as client:
        predictions = (await client.post("/v1/predict", json=as_json(images))).json()["predictions"]
    for prediction, row in zip(predictions, clean(images), strict=True):
        assert list(prediction["probabilities"].values()) == sorted(row, reverse=True)[:2]
        assert prediction["label"] == next(iter(prediction["probabilities"]))


async def test_without_a_defence_the_model_answers(make_service: MakeService) -> None:
    images = foreign_images(12)
    async with make_service(defended=False).client() as client:
        assert probabilities(await client.post("/v1/predict", json=as_json(images))) == clean(images)


async def test_trusted_accounts_get_clean_answers_and_are_still_recorded(service: Service) -> None:
    service.store.set_status("alice", "trusted")
    images = foreign_images(8)
    async with service.client() as client:
        assert probabilities(await client.post("/v1/predict", json=as_json(images))) == clean(images)
    account = service.store.account("alice")
    assert account is not None
    assert account.poisoned == 0
    assert account.score is not None
    assert account.score > 0.1
    assert [decision.poisoned for decision in service.store.decisions()] == [0]


async def test_banned_accounts_get_nothing(service: Service) -> None:
    service.store.set_status("alice", "banned")
    async with service.client() as client:
        response = await client.post("/v1/predict", files=as_files([png_bomb(60_000)]))
    assert response.status_code == 403
    assert response.json() == {"detail": "this account is banned"}


async def test_decisions_hold_the_evidence(service: Service) -> None:
    async with service.client() as client:
        await client.post("/v1/predict", json=as_json(known_images(6)))
        await client.post("/v1/predict", json=as_json(foreign_images(1)))
        await client.post("/v1/predict", json=as_json(foreign_images(5, 1)))
    decision = service.store.decisions()[0]
    assert decision.account == "alice"
    assert decision.threshold == 0.1
    assert 7 < decision.asked <= 12
    assert sum(decision.classes.values()) == 4  # the window
    weighted = sum(decision.distances[name] * count for name, count in decision.classes.items()) / 4
    assert decision.score == pytest.approx(weighted)
    account = service.store.account("alice")
    assert account is not None
    assert account.highest == pytest.approx(decision.score)  # also where a later image of the request scored less


async def test_the_threshold_is_shared_by_replicas(make_service: MakeService) -> None:
    one, two = make_service(), make_service()
    images = foreign_images(8)
    async with one.admin() as admin, one.client() as first, two.client() as second:
        assert (await admin.put("/v1/admin/threshold", json={"threshold": 1e6})).json()["threshold"] == 1e6
        assert probabilities(await first.post("/v1/predict", json=as_json(images))) == clean(images)
        assert probabilities(await second.post("/v1/predict", json=as_json(images))) == clean(images)
        again = await admin.put("/v1/admin/threshold", json={"threshold": None})
        assert again.json() == {"threshold": 0.1, "calibrated": 0.1}
        assert probabilities(await first.post("/v1/predict", json=as_json(images))) != clean(images)


WRONG_KEYS = ["", "sr_0123456789abcdef_" + "a" * 43, "nonsense"]


@pytest.mark.parametrize("key", WRONG_KEYS)
async def test_wrong_keys_are_refused_alike(service: Service, key: str) -> None:
    async with service.client(key) as client:
        response = await client.post("/v1/predict", content=b"x" * 100_000)
    assert response.status_code == 401
    assert response.json() == {"detail": "the key is missing or wrong"}
    assert response.headers["www-authenticate"] == "Bearer"


async def test_a_revoked_key_opens_nothing(service: Service) -> None:
    async with service.client() as client, service.admin() as admin:
        assert (await client.post("/v1/predict", json=as_json(known_images(1)))).status_code == 200
        key_id = service.key.split("_")[1]
        assert (await admin.delete(f"/v1/admin/keys/{key_id}")).status_code == 204
        assert (await client.post("/v1/predict", json=as_json(known_images(1)))).status_code == 401
        assert (await admin.delete(f"/v1/admin/keys/{key_id}")).status_code == 404


async def test_an_exhausted_account_is_refused_before_its_images_are_opened(make_service: MakeService) -> None:
    service = make_service(limits=Limits(per_minute=60.0, burst=4))
    bomb = as_files([png_bomb(60_000)])
    async with service.client() as client:
        assert (await client.post("/v1/predict", files=bomb)).status_code == 413  # it has a token: the header is read
        assert (await client.post("/v1/predict", json=as_json(known_images(3)))).status_code == 200
        refused = await client.post("/v1/predict", files=bomb)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 2
        assert (await client.post("/v1/predict", json={"images": ["not base64!"]})).status_code == 429
        too_many = await client.post("/v1/predict", json=as_json(known_images(5)))
        assert too_many.status_code == 413  # would never fit the bucket
    async with service.client(service.make_key("bob")) as other:
        assert (await other.post("/v1/predict", json=as_json(known_images(3)))).status_code == 200


async def chunks(total: int, size: int = 10_000) -> AsyncIterator[bytes]:
    for _ in range(0, total, size):
        yield b" " * size


async def test_bodies_too_long_are_refused_announced_or_not(make_service: MakeService) -> None:
    service = make_service(max_body=50_000)
    kind = {"Content-Type": "application/json"}
    async with service.client() as client:
        announced = await client.post("/v1/predict", content=b" " * 50_001, headers=kind)
        streamed = await client.post("/v1/predict", content=chunks(60_000), headers=kind)
        parts = await client.post("/v1/predict", files=as_files([b" " * 60_000]))
        admin = await client.put("/v1/admin/threshold", content=chunks(70_000), headers=kind)
    for response in (announced, streamed, parts):
        assert response.status_code == 413
        assert response.json() == {"detail": "the request has more than 50000 bytes"}
    assert admin.status_code in (401, 413)


async def test_what_comes_after_the_limit_is_not_read(make_service: MakeService) -> None:
    service, sent = make_service(max_body=50_000), 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield b" " * 10_000

    async with service.client() as client:
        response = await client.post("/v1/predict", content=endless(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert sent <= 70_000


async def test_slow_bodies_are_refused(make_service: MakeService) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with make_service(body_seconds=0.05).client() as client:
        response = await client.post("/v1/predict", content=slow(), headers={"Content-Type": "application/json"})
    assert response.status_code == 408


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"content": b"", "headers": {"Content-Type": "application/json"}}, 400),
        ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400),
        ({"content": b"\xff\xfe", "headers": {"Content-Type": "application/json"}}, 400),
        ({"json": []}, 422),
        ({"json": {}}, 422),
        ({"json": {"images": "abc"}}, 422),
        ({"json": {"images": [1]}}, 422),
        ({"json": {"images": []}}, 422),
        ({"json": {"images": ["aGk="], "account": "bob"}}, 422),
        ({"json": {"images": ["*"]}}, 400),
        ({"json": {"images": ["aGk="]}}, 415),
        ({"json": {"images": [""] * 65}}, 413),
        ({"content": b"hello"}, 415),
        ({"content": b"hello", "headers": {"Content-Type": "multipart/form-data"}}, 400),
        ({"content": b"hello", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400),
        ({"files": [("other", ("a.png", b"", "image/png"))]}, 422),
        ({"files": as_files([b""])}, 415),
        ({"files": as_files([b"x"] * 65)}, 400),
        ({"data": {"images": "x"}}, 415),
        ({"data": {"images": "x"}, "files": as_files([b"x"])}, 400),
    ],
)
async def test_malformed_requests_are_refused_in_one_line(service: Service, body: dict[str, Any], status: int) -> None:
    async with service.client() as client:
        response = await client.post("/v1/predict", **body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"detail"}
    assert "\n" not in response.json()["detail"]


async def test_a_failing_model_shows_no_stack_trace_and_reaches_the_log(
    make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(images: Images) -> Observed:
        if images.any():
            raise RuntimeError("the secret of the house")
        return observe(images)

    service = make_service(observe=failing)
    with caplog.at_level(logging.INFO, "stillroom.guard"):
        async with service.client() as client:
            response = await client.post("/v1/predict", json=as_json(known_images(1)))
    assert response.status_code == 500
    request = response.headers["x-request-id"]
    assert response.json() == {"detail": f"internal error; request {request}"}
    failed = next(record for record in caplog.records if record.exc_info)
    assert failed.__dict__["fields"]["request"] == request


async def test_logs_name_the_account_and_never_its_key(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "stillroom.guard"):
        async with service.client() as client, service.admin() as admin:
            await client.post("/v1/predict", json=as_json(foreign_images(6)))
            made = (await admin.post("/v1/admin/keys", json={"account": "bob"})).json()["key"]
    lines = [JsonLines().format(record) for record in caplog.records if record.name == "stillroom.guard"]
    said = next(json.loads(line) for line in lines if "/v1/predict" in line)
    assert {"account": "alice", "images": 6, "poisoned": 3, "status": 200}.items() <= said.items()
    whole = "\n".join(lines)
    for secret in (service.key, made):
        assert secret.split("_", 2)[2] not in whole


async def test_a_busy_service_says_when_to_come_back(make_service: MakeService) -> None:
    release = threading.Event()

    def blocked(images: Images) -> Observed:
        if images.any():
            release.wait(30)
        return observe(images)

    service = make_service(observe=blocked, workers=2, waiting=1)
    body = as_json(known_images(1))
    async with service.client() as client:
        tasks = [asyncio.create_task(client.post("/v1/predict", json=body)) for _ in range(5)]
        refused = [await task for task in itertools.islice(asyncio.as_completed(tasks), 2)]
        release.set()
        responses = [await task for task in tasks]
    assert [response.status_code for response in refused] == [503, 503]
    assert all(int(response.headers["retry-after"]) == 1 for response in refused)
    assert sorted(response.status_code for response in responses) == [200, 200, 200, 503, 503]


async def test_metrics_count_without_naming_accounts(service: Service) -> None:
    async with service.client() as client, service.admin() as admin:
        await client.post("/v1/predict", json=as_json(foreign_images(6)))
        await client.post("/v1/predict", json={"images": ["*"]})
        assert (await client.get("/metrics")).status_code == 401
        text = (await admin.get("/metrics")).text
    assert "stillroom_images_total 6.0" in text
    assert "stillroom_poisoned_total 3.0" in text
    assert "stillroom_flagged_total 1.0" in text
    assert 'stillroom_refused_total{reason="format"} 1.0' in text
    assert 'stillroom_accounts{status="watched"} 1.0' in text
    assert 'stillroom_requests_total{route="/v1/predict",status="200"} 1.0' in text
    assert "alice" not in text


async def test_a_key_for_metrics_opens_nothing_else(make_service: MakeService) -> None:
    key = "only-for-reading-the-metrics"
    async with make_service(metrics_digest=hash_admin_key(key)).client(key) as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/v1/admin/status")).status_code == 401


async def test_a_store_that_is_gone_makes_the_service_unready(service: Service) -> None:
    async with service.client() as client:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        service.store.close()
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).json() == {"status": "ok"}


async def test_nothing_is_answered_that_the_store_does_not_remember(service: Service) -> None:
    with contextlib.closing(sqlite3.connect(service.store.path)) as connection:
        connection.execute("DROP TABLE query")
    async with service.client() as client:
        response = await client.post("/v1/predict", json=as_json(known_images(1)))
    assert response.status_code == 503
    assert response.json() == {"detail": "the service is not ready"}


def test_a_model_with_other_classes_is_refused(make_service: Callable[..., Service]) -> None:
    def other(images: Images) -> Observed:
        return Observed(np.zeros((len(images), 3), np.float32), np.zeros((len(images), 7), np.float32))

    with pytest.raises(InputError, match="knows 7 classes, but 4 names"):
        make_service(observe=other)
