"""``/admin``: the accounts in a browser; plain pages from the server, no scripts, nothing from elsewhere."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Cookie, Form, Query, Response
from fastapi import Path as PathPart
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.requests import Request

from stillroom.defense.service.keys import ACCOUNT, is_admin_key
from stillroom.defense.service.logs import logger
from stillroom.defense.service.refusal import Refusal
from stillroom.defense.service.serving import Serving
from stillroom.defense.service.sessions import Sessions
from stillroom.defense.service.settings import Settings
from stillroom.defense.service.store import Order, Status

__all__ = ["pages_router"]

TEMPLATES = Path(__file__).parent / "templates"
COOKIE = "stillroom_admin"
PAGE = 50  # accounts, or decisions of an account
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}

Session = Annotated[str, Cookie(alias=COOKIE)]
Token = Annotated[str, Form()]


def pages_router(serving: Serving, settings: Settings) -> APIRouter:
    """Return the pages."""
    router = APIRouter(prefix="/admin", include_in_schema=False)
    store = serving.store
    sessions = Sessions(settings.secret, settings.admin_digest, settings.session_seconds)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters.update(figure=_figure, ago=_ago, clock=_clock)

    def page(name: str, session: str, status: int = 200, **content: Any) -> Response:
        token = sessions.form_token(session) if session else ""
        text = templates.get_template(name).render(token=token, now=time.time(), **content)
        return HTMLResponse(text, status, HEADERS)

    def known(session: str) -> bool:
        return sessions.valid(session, time.time())

    def genuine(session: str, token: str) -> None:
        if not known(session):
            raise Refusal(401, "the session has ended; log in again at /admin", "admin")
        if not sessions.is_form_token(token, session):
            raise Refusal(403, "the form does not belong to this session; reload the page", "admin")

    def overview(session: str, order: Order, offset: int, said: str = "", status: int = 200) -> Response:
        found = store.accounts(order=order, limit=PAGE + 1, offset=offset)
        shown, threshold = found[:PAGE], serving.threshold
        scores = [account.score for account in shown if account.score is not None]
        return page(
            "accounts.html",
            session,
            status,
            accounts=shown,
            counts=store.counts(),
            threshold=threshold,
            calibrated=serving.calibrated,
            scale=_scale([*scores, threshold or 0.0]),
            order=order,
            offset=offset,
            before=max(offset - PAGE, 0) if offset else None,
            after=offset + PAGE if len(found) > PAGE else None,
            said=said,
        )

    @router.get("")
    def home(
        order: Order = "score", offset: Annotated[int, Query(ge=0, le=10**9)] = 0, session: Session = ""
    ) -> Response:
        return overview(session, order, offset) if known(session) else page("login.html", "", said="")

    @router.get("/style.css")
    def style() -> Response:
        return Response((TEMPLATES / "style.css").read_bytes(), media_type="text/css")

    @router.get("/icon.svg")
    def icon() -> Response:
        return Response((TEMPLATES / "icon.svg").read_bytes(), media_type="image/svg+xml")

    @router.post("/login")
    def login(request: Request, key: Annotated[str, Form()]) -> Response:
        if not is_admin_key(key.strip(), settings.admin_digest):
            logger.warning("wrong key at the admin page")
            return page("login.html", "", 401, said="That is not the administrator’s key.")
        response = RedirectResponse("/admin", 303)
        response.set_cookie(
            COOKIE,
            sessions.begin(time.time()),
            max_age=int(settings.session_seconds),
            path="/admin",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    @router.post("/logout")
    def logout(token: Token, session: Session = "") -> Response:
        genuine(session, token)
        response = RedirectResponse("/admin", 303)
        response.delete_cookie(COOKIE, path="/admin", httponly=True, samesite="strict")
        return response

    @router.post("/threshold")
    def threshold(token: Token, threshold: Annotated[str, Form()] = "", session: Session = "") -> Response:
        genuine(session, token)
        try:
            wanted = float(threshold) if threshold.strip() else None
        except ValueError:
            wanted = math.nan
        if wanted is not None and not math.isfinite(wanted):
            return overview(session, "score", 0, "The threshold must be a number.", 422)
        serving.set_threshold(wanted)
        logger.info("threshold changed", extra={"fields": {"threshold": wanted}})
        return RedirectResponse("/admin", 303)

    @router.get("/accounts/{name}")
    def account(
        name: Annotated[str, PathPart(pattern=ACCOUNT)],
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
        session: Session = "",
    ) -> Response:
        if not known(session):
            return RedirectResponse("/admin", 303)
        shown = serving.account(name)
        found = store.decisions(account=name, limit=PAGE + 1, offset=offset)
        return page(
            "account.html",
            session,
            account=shown,
            keys=store.keys(name),
            decisions=found[:PAGE],
            threshold=serving.threshold,
            scale=_scale([shown.score or 0.0, shown.highest or 0.0, serving.threshold or 0.0]),
            before=max(offset - PAGE, 0) if offset else None,
            after=offset + PAGE if len(found) > PAGE else None,
        )

    @router.post("/accounts/{name}/status")
    def set_status(
        name: Annotated[str, PathPart(pattern=ACCOUNT)],
        token: Token,
        status: Annotated[Status, Form()],
        session: Session = "",
    ) -> Response:
        genuine(session, token)
        serving.account(name)
        store.set_status(name, status)
        logger.info("status changed", extra={"fields": {"account": name, "status_now": status}})
        return RedirectResponse(f"/admin/accounts/{name}", 303)

    return router


def _scale(values: list[float]) -> float:
    """Return the value at the right end of a bar."""
    return 1.08 * max(values) or 1.0


def _figure(value: float | None) -> str:
    """Write a number for people; four digits tell scores apart."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.4g}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _ago(seconds: float, now: float) -> str:
    if not seconds:
        return "never"
    past = max(now - seconds, 0.0)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if past >= unit:
            return f"{past // unit:.0f} {name} ago"
    return f"{past:.0f} s ago"
