"""The guard around applications that exist already: what it takes out, replaces, holds back and leaves alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Scope
from starlette.websockets import WebSocket

from defense.service.application import CLASSES, WINDOW, foreign_images, guard, known_images, observe
from stillroom.defense.contracts import Observed, softmax
from stillroom.defense.service.middleware import GuardMiddleware
from stillroom.defense.windows import MemoryWindows
from stillroom.errors import InputError

pytestmark = pytest.mark.anyio


def account(scope: Scope) -> str | None:
    name = dict(scope["headers"]).get(b"x-account")
    return None if name is None else name.decode()


def answers(observed: Observed, *, names: bool) -> list[dict[str, Any]]:
    records = []
    for features, logits, row in zip(observed.features, observed.logits, softmax(observed.logits), strict=True):
        probabilities = dict(zip(CLASSES, row.tolist(), strict=True)) if names else row.tolist()
        best = int(row.argmax())
        records.append(
            {
                "label": CLASSES[best] if names else best,
                "probabilities": probabilities,
                "model": "v1",
                "features": features.tolist(),
                "logits": logits.tolist(),
            }
        )
    return records


async def starlette_predict(request: Request) -> Response:
    images = np.array(await request.json(), np.uint8)
    return JSONResponse({"predictions": answers(observe(images), names=True), "took": 3}, headers={"ETag": "x"})


def wrapped(app: Any, **options: Any) -> GuardMiddleware:
    options = {"account": account, "paths": ["/predict"], "classes": CLASSES, **options}
    return GuardMiddleware(app, guard(MemoryWindows(WINDOW)), **options)  # type: ignore[arg-type]


def client(app: Any, name: str | None = "alice") -> httpx.AsyncClient:
    headers = {} if name is None else {"X-Account": name}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app", headers=headers)


def replying(response: Response) -> Starlette:
    async def reply(request: Request) -> Response:
        return response

    return Starlette(routes=[Route("/predict", reply, methods=["POST", "GET"])])


def rounded(images: np.ndarray[Any, Any]) -> list[list[float]]:
    return softmax(observe(images).logits).round(6).tolist()


async def test_a_starlette_application_is_guarded() -> None:
    app = wrapped(Starlette(routes=[Route("/predict", starlette_predict, methods=["POST"])]))
    honest, stolen = known_images(8), foreign_images(8)
    async with client(app) as alice, client(app, "eve") as eve:
        good = await alice.post("/predict", json=honest.tolist())
        bad = await eve.post("/predict", json=stolen.tolist())
    assert [list(p["probabilities"].values()) for p in good.json()["predictions"]] == rounded(honest)
    got = [list(p["probabilities"].values()) for p in bad.json()["predictions"]]
    assert got[:3] == rounded(stolen)[:3]
    assert all(a != b for a, b in zip(got[3:], rounded(stolen)[3:], strict=True))
    for response in (good, bad):
        assert response.json()["took"] == 3
        assert "etag" not in response.headers
        for prediction in response.json()["predictions"]:
            assert list(prediction) == ["label", "probabilities", "model"]  # no features, no logits
            assert list(prediction["probabilities"]) == list(CLASSES)
            assert prediction["label"] == max(prediction["probabilities"], key=prediction["probabilities"].get)


async def test_a_fastapi_application_is_guarded_by_add_middleware() -> None:
    app = FastAPI()

    @app.post("/predict")
    async def predict(images: list[Any]) -> list[dict[str, Any]]:
        return answers(observe(np.array(images, np.uint8)), names=False)

    app.add_middleware(GuardMiddleware, defence=guard(MemoryWindows(WINDOW)), account=account, paths=["/predict"])
    images = foreign_images(8)
    async with client(app) as eve:
        first = (await eve.post("/predict", json=images.tolist())).json()
        again = (await eve.post("/predict", json=images.tolist())).json()
    assert [answer["probabilities"] for answer in first[:3]] == rounded(images)[:3]
    assert all(answer["probabilities"] != row for answer, row in zip(first[3:], rounded(images)[3:], strict=True))
    assert first[3:] == again[3:]  # the same image has the same poison
    assert all(answer["label"] == int(np.argmax(answer["probabilities"])) for answer in first)


async def test_labels_alone_are_replaced_too() -> None:
    async def predict(request: Request) -> Response:
        (record,) = answers(observe(np.array(await request.json(), np.uint8)), names=False)
        del record["probabilities"]
        return JSONResponse(record)

    app = wrapped(Starlette(routes=[Route("/predict", predict, methods=["POST"])]), classes=None)
    async with client(app) as eve:
        labels = [
            (await eve.post("/predict", json=[image.tolist()])).json()["label"]
            for image in foreign_images(1).repeat(40, 0)
        ]
    true = int(observe(foreign_images(1)).logits.argmax())
    assert labels[:3] == [true] * 3
    assert len(set(labels[3:])) == 1  # one image, one answer


async def test_the_highest_probabilities_stay_the_highest_in_number_and_order() -> None:
    async def predict(request: Request) -> Response:
        records = answers(observe(np.array(await request.json(), np.uint8)), names=True)
        for record in records:
            record["probabilities"] = dict(sorted(record["probabilities"].items(), key=lambda item: -item[1])[:2])
        return JSONResponse(records)

    app = wrapped(Starlette(routes=[Route("/predict", predict, methods=["POST"])]))
    async with client(app) as eve:
        for record in (await eve.post("/predict", json=foreign_images(9).tolist())).json():
            values = list(record["probabilities"].values())
            assert len(values) == 2
            assert values == sorted(values, reverse=True)
            assert record["label"] == next(iter(record["probabilities"]))


FULL = {"probabilities": [0.1, 0.2, 0.3, 0.4], "features": [0.0, 0.0, 1.0], "logits": [1.0, 2.0, 3.0, 4.0]}


def without(*names: str, **changes: object) -> dict[str, object]:
    return {name: value for name, value in {**FULL, **changes}.items() if name not in names}


@pytest.mark.parametrize(
    "response",
    [
        JSONResponse(without("features")),
        JSONResponse(without("logits")),
        JSONResponse(without("probabilities")),
        JSONResponse([FULL, without("features")]),
        JSONResponse(without(features=[0.0, "x", 1.0])),
        JSONResponse(without(features=[])),
        JSONResponse(without(logits=[1.0, 2.0])),
        JSONResponse([FULL, without(features=[0.0, 1.0])]),
        JSONResponse(without(probabilities=[0.5, 0.5])),
        JSONResponse(without(probabilities={"cat": 1.0})),
        JSONResponse(without(probabilities=0.9)),
        JSONResponse(without(label=None)),
        JSONResponse({"answer": "dark"}),
        Response(b'{"probabilities": [1, 0, 0, 0], "features": [NaN, 0, 0], "logits": [1, 2, 3, 4]}'),
        Response(b"[" * 100_000),
        PlainTextResponse("dark"),
        Response(status_code=204),
    ],
)
async def test_answers_that_are_not_understood_are_held_back(
    response: Response, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "stillroom.guard"):
        async with client(wrapped(replying(response))) as alice:
            got = await alice.post("/predict")
    assert got.status_code == 500
    assert got.json() == {"detail": "the answer was held back"}
    assert [record.message for record in caplog.records] == ["an answer was held back"]


async def test_names_need_the_classes_in_order() -> None:
    named = without(probabilities={"dark": 0.1, "red": 0.2, "green": 0.3, "blue": 0.4})
    async with client(wrapped(replying(JSONResponse(named)), classes=None)) as alice:
        assert (await alice.post("/predict")).status_code == 500


async def test_a_whole_answer_passes() -> None:
    async with client(wrapped(replying(JSONResponse(FULL)))) as alice:
        got = await alice.post("/predict")
        trailing = await alice.post("/predict/")
    assert got.json() == {"probabilities": softmax(np.array([FULL["logits"]]))[0].round(6).tolist()}
    assert int(got.headers["content-length"]) == len(got.content)
    assert "features" not in trailing.text


async def test_requests_of_nobody_do_not_reach_the_application() -> None:
    async def unreachable(request: Request) -> Response:
        raise AssertionError("the application was asked")

    app = wrapped(Starlette(routes=[Route("/predict", unreachable, methods=["POST"])]))
    async with client(app, None) as nobody:
        assert (await nobody.post("/predict")).status_code == 401


@pytest.mark.parametrize("status", [307, 404, 422, 503])
async def test_errors_pass_as_they_are(status: int) -> None:
    said = RedirectResponse("/other") if status == 307 else JSONResponse({"detail": "no"}, status)
    async with client(wrapped(replying(said))) as alice:
        got = await alice.post("/predict")
    assert got.status_code == status
    assert got.content == said.body


async def test_other_paths_stream_untouched() -> None:
    def parts() -> Iterator[bytes]:
        yield b'{"features": '
        yield b"[1]}"

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts(), media_type="application/json")

    app = wrapped(Starlette(routes=[Route("/stream", stream)]))
    async with client(app, None) as nobody:
        assert (await nobody.get("/stream")).content == b'{"features": [1]}'


async def test_a_streamed_answer_on_a_defended_path_is_read_whole() -> None:
    text = json.dumps(FULL).encode()

    async def stream(request: Request) -> Response:
        return StreamingResponse(iter([text[:20], text[20:]]), media_type="application/json")

    async with client(wrapped(Starlette(routes=[Route("/predict", stream, methods=["POST"])]))) as alice:
        assert set((await alice.post("/predict")).json()) == {"probabilities"}


async def test_packed_answers_cannot_be_asked_for() -> None:
    seen: dict[bytes, bytes] = {}

    async def predict(request: Request) -> Response:
        seen.update(request.scope["headers"])
        return JSONResponse(FULL)

    app = wrapped(Starlette(routes=[Route("/predict", predict, methods=["POST"])]))
    async with client(app) as alice:
        await alice.post("/predict", headers={"Accept-Encoding": "gzip", "Range": "bytes=0-9"})
    assert not {b"accept-encoding", b"range"} & seen.keys()
    assert b"x-account" in seen


async def test_connections_on_a_defended_path_are_closed() -> None:
    async def talk(socket: WebSocket) -> None:
        raise AssertionError("the application was asked")

    app, sent = wrapped(Starlette(routes=[WebSocketRoute("/predict", talk)])), []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/predict", "headers": [(b"x-account", b"alice")]}
    await app(scope, lambda: None, send)  # type: ignore[arg-type, return-value]
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("paths", ["/predict", []])
def test_paths_must_be_named(paths: Any) -> None:
    with pytest.raises(InputError, match="name the paths"):
        wrapped(Starlette(), paths=paths)
