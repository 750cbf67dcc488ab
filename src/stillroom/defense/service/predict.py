"""``POST /v1/predict``: images in, answers out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from stillroom.defense.contracts import Floats
from stillroom.defense.service.frame import PREDICT, note
from stillroom.defense.service.keys import account_of
from stillroom.defense.service.refusal import Refusal
from stillroom.defense.service.schemas import Predictions, problems
from stillroom.defense.service.serving import Answered, Serving
from stillroom.defense.service.settings import Settings

__all__ = ["formatted", "predict_router"]

_bearer = HTTPBearer(scheme_name="account key", description="sr_<id>_<secret>", auto_error=False)

_PICTURES = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
_ENCODED = {"type": "array", "minItems": 1, "items": {"type": "string", "contentEncoding": "base64"}}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["images"], "properties": {"images": _PICTURES}}
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": _ENCODED},
                "additionalProperties": False,
            }
        },
    },
}


def predict_router(serving: Serving, pool: ThreadPoolExecutor) -> APIRouter:
    """Return the endpoint."""
    router, settings = APIRouter(), serving.settings
    present = 0

    @router.post(
        PREDICT,
        response_model=Predictions,
        responses=problems(400, 401, 403, 408, 413, 415, 422, 429, 503),
        openapi_extra={"requestBody": _BODY},
        summary="Classify images",
    )
    async def predict(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
    ) -> JSONResponse:
        """Classify PNG, JPEG or WebP images: files named ``images``, or JSON with base64."""
        nonlocal present
        presented = credentials.credentials if credentials else ""
        if serving.store.local:
            account = account_of(serving.store, presented)
        else:
            # In other threads than the model's, so that who waits for these is known, and counted.
            account = await run_in_threadpool(account_of, serving.store, presented)
        if account is None:
            raise Refusal(401, "the key is missing or wrong", "key")
        note(request.scope, account=account)
        body = await _read(request, settings)
        if present >= settings.workers + settings.waiting:
            raise Refusal(503, "the service is busy", "busy", retry_after=1)

        def work() -> tuple[int, Answered, JSONResponse]:
            parts = _parts(body, settings)
            answered = serving.answer(account, parts)
            predictions = formatted(answered.probabilities, serving.classes, settings)
            return len(parts), answered, JSONResponse({"predictions": predictions})

        present += 1
        try:
            images, answered, response = await asyncio.get_running_loop().run_in_executor(pool, work)
        finally:
            present -= 1
        note(request.scope, images=images, poisoned=answered.poisoned, score=answered.score)
        return response

    return router


async def _read(request: Request, settings: Settings) -> bytes | list[bytes]:
    """Return the JSON as it came, or the files; nothing is decoded."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await request.body()
    if kind != "multipart/form-data":
        raise Refusal(415, "send multipart/form-data with files named images, or application/json", "format")
    async with request.form(max_files=settings.most_images, max_fields=0) as form:
        files = form.getlist("images")
        if len(files) != len(form.multi_items()) or not all(isinstance(file, UploadFile) for file in files):
            raise Refusal(422, "every part must be a file named images", "format")
        return [await file.read() for file in files if isinstance(file, UploadFile)]


def _parts(body: bytes | list[bytes], settings: Settings) -> Sequence[bytes | str]:
    parts: Sequence[bytes | str]
    if isinstance(body, list):
        parts = body
    else:
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "the request is not JSON", "format") from error
        known = isinstance(value, dict) and set(value) == {"images"} and isinstance(value["images"], list)
        if not known or not all(isinstance(part, str) for part in value["images"]):
            raise Refusal(422, 'the request must be {"images": [base64, ...]}', "format")
        parts = value["images"]
    if not 1 <= len(parts) <= settings.most_images:
        status = 413 if parts else 422
        raise Refusal(status, f"a request holds 1 to {settings.most_images} images", "count")
    return parts


def formatted(probabilities: Floats, classes: Sequence[str], settings: Settings) -> list[dict[str, Any]]:
    """Return the answers as the client gets them; what a defence altered has the same form as what it did not.

    Shapes:
        probabilities: [B, K].
    """
    labels = probabilities.argmax(1).tolist()
    if settings.answers == "hard":
        return [{"label": classes[label], "probabilities": None} for label in labels]
    if settings.answers == "soft":
        rows = probabilities.round(settings.decimals).tolist()
        return [
            {"label": classes[label], "probabilities": dict(zip(classes, row, strict=True))}
            for label, row in zip(labels, rows, strict=True)
        ]
    order = (-probabilities).argsort(1, kind="stable")[:, : settings.top_k].tolist()
    return [
        {
            "label": classes[label],
            "probabilities": {classes[k]: round(float(row[k]), settings.decimals) for k in highest},
        }
        for label, highest, row in zip(labels, order, probabilities, strict=True)
    ]
