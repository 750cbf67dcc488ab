"""The guarded endpoint as a web application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated

from stillroom.defense.contracts import Defence, Observe
from stillroom.errors import FailureError, MissingExtraError

try:
    import python_multipart  # noqa: F401  FastAPI wants it for forms and says so only when the first is made
    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    from stillroom.defense.service.admin import admin_router, presented_key
    from stillroom.defense.service.frame import Frame
    from stillroom.defense.service.metrics import Metrics
    from stillroom.defense.service.pages import pages_router
    from stillroom.defense.service.predict import predict_router
    from stillroom.defense.service.refusal import Refusal
    from stillroom.defense.service.schemas import problems
    from stillroom.defense.service.serving import Serving
except ModuleNotFoundError as missing:
    raise MissingExtraError(missing.name or "fastapi", "serve") from missing

from stillroom import __version__
from stillroom.defense.service.keys import is_admin_key
from stillroom.defense.service.logs import logger
from stillroom.defense.service.settings import Settings
from stillroom.defense.service.store import Store

__all__ = ["create_app"]


def create_app(
    observe: Observe,
    classes: Sequence[str],
    shape: tuple[int, int, int],
    defence: Defence | None,
    store: Store,
    settings: Settings,
) -> FastAPI:
    """Return the application; it closes the store when it ends.

    Args:
        observe: The model, such as :class:`~stillroom.defense.endpoint.Endpoint`; called from worker threads.
        classes: Names of its classes.
        shape: Channels, height and width it takes.
        defence: Turns clean answers into those that leave the house; None serves the model as it is.
        store: The accounts.
        settings: How it answers and what it refuses.

    Raises:
        InputError: The model answers with another number of classes.
        MissingExtraError: FastAPI is not installed.
    """
    metrics = Metrics(store)
    serving = Serving(observe, classes, shape, defence, store, settings, metrics)
    pool = ThreadPoolExecutor(settings.workers, "stillroom")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown()
        store.close()

    app = FastAPI(
        title="stillroom guard",
        version=__version__,
        summary="A classifier behind a guard against model stealing.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Frame, settings=settings, metrics=metrics)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        metrics.refused.labels(error.reason if isinstance(error, Refusal) else str(error.status_code)).inc()
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    @app.exception_handler(FailureError)
    async def failed(request: Request, error: FailureError) -> JSONResponse:
        # The account store cannot be read or written: nothing is answered that it would not remember.
        logger.error("the account store failed", extra={"fields": {"reason": str(error)}})
        metrics.refused.labels("store").inc()
        return JSONResponse({"detail": "the service is not ready"}, 503, {"Retry-After": "1"})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        metrics.refused.labels("invalid").inc()
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"detail": f"{where}: {first['msg']}"}, 422)

    @app.get("/healthz", summary="Say that the process runs")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", responses=problems(503), summary="Say whether the account store answers")
    def readyz() -> dict[str, str]:
        try:
            store.setting("threshold")
        except Exception as error:  # each database has errors of its own, and all mean the same here
            logger.exception("the account store does not answer")
            raise Refusal(503, "the account store does not answer", "store", retry_after=1) from error
        return {"status": "ready"}

    @app.get("/metrics", responses=problems(401), response_class=Response, summary="What Prometheus reads")
    def read_metrics(key: Annotated[str, Depends(presented_key)]) -> Response:
        """Give the counters to holders of the metrics' or the administrator's key: a thief must not see them move."""
        known = {is_admin_key(key, settings.admin_digest), is_admin_key(key, settings.metrics_digest or bytes(32))}
        if True not in known:
            raise Refusal(401, "the key is missing or wrong", "admin")
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(predict_router(serving, pool))
    app.include_router(admin_router(serving, settings))
    app.include_router(pages_router(serving, settings))
    return app
