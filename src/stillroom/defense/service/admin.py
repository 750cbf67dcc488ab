"""``/v1/admin/...``: accounts, decisions, keys and the threshold, for programs that hold the administrator's key."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from stillroom.defense.service.keys import ACCOUNT, KEY_ID, is_admin_key, new_key
from stillroom.defense.service.logs import logger
from stillroom.defense.service.refusal import Refusal
from stillroom.defense.service.schemas import (
    AccountKeys,
    AccountList,
    AccountView,
    DecisionList,
    DecisionView,
    KeyMade,
    KeyView,
    KeyWanted,
    Overview,
    StatusWanted,
    Threshold,
    ThresholdWanted,
    problems,
)
from stillroom.defense.service.serving import Serving
from stillroom.defense.service.settings import Settings
from stillroom.defense.service.store import Order

__all__ = ["admin_router", "presented_key"]

_bearer = HTTPBearer(scheme_name="administrator's key", auto_error=False)

Name = Annotated[str, Path(pattern=ACCOUNT)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=10**9)]


def presented_key(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
    """Return the key in the Authorization header, or nothing."""
    return credentials.credentials if credentials else ""


def admin_router(serving: Serving, settings: Settings) -> APIRouter:
    """Return the endpoints."""
    store = serving.store

    def administrator(key: Annotated[str, Depends(presented_key)]) -> None:
        if not is_admin_key(key, settings.admin_digest):
            raise Refusal(401, "the administrator's key is missing or wrong", "admin")

    router = APIRouter(
        prefix="/v1/admin",
        tags=["admin"],
        dependencies=[Depends(administrator)],
        responses=problems(400, 401, 413, 422, 503),
    )

    @router.get("/status")
    def overview() -> Overview:
        """Count accounts and decisions."""
        return Overview(threshold=serving.threshold, calibrated=serving.calibrated, counts=store.counts())

    @router.get("/accounts")
    def accounts(order: Order = "score", limit: Limit = 100, offset: Offset = 0) -> AccountList:
        """List accounts, highest first."""
        found = store.accounts(order=order, limit=limit, offset=offset)
        return AccountList(
            accounts=[AccountView.model_validate(account) for account in found], threshold=serving.threshold
        )

    @router.get("/accounts/{name}", responses=problems(404))
    def account(name: Name) -> AccountView:
        """Show one account."""
        return AccountView.model_validate(serving.account(name))

    @router.put("/accounts/{name}/status", responses=problems(404))
    def set_status(name: Name, wanted: StatusWanted) -> AccountView:
        """Ban an account, trust it (clean answers whatever its score), or release it: watched, with a fresh window."""
        serving.account(name)
        store.set_status(name, wanted.status)
        logger.info("status changed", extra={"fields": {"account": name, "status_now": wanted.status}})
        return AccountView.model_validate(serving.account(name))

    @router.get("/accounts/{name}/keys")
    def keys(name: Name) -> AccountKeys:
        """List the keys of an account, without their secrets."""
        return AccountKeys(keys=[KeyView(key_id=key.key_id, created=key.created) for key in store.keys(name)])

    @router.get("/decisions")
    def decisions(
        account: Annotated[str | None, Query(pattern=ACCOUNT)] = None, limit: Limit = 100, offset: Offset = 0
    ) -> DecisionList:
        """List flagged requests with their evidence, newest first."""
        found = store.decisions(account=account, limit=limit, offset=offset)
        return DecisionList(decisions=[DecisionView.model_validate(decision) for decision in found])

    @router.post("/keys", status_code=201)
    def make_key(wanted: KeyWanted) -> KeyMade:
        """Make a key; its secret is in this answer and nowhere else."""
        text, key = new_key(wanted.account)
        store.add_key(key)
        logger.info("key made", extra={"fields": {"account": key.account, "key_id": key.key_id}})
        return KeyMade(key=text, key_id=key.key_id, account=key.account)

    @router.delete("/keys/{key_id}", status_code=204, responses=problems(404))
    def revoke_key(key_id: Annotated[str, Path(pattern=KEY_ID)]) -> None:
        """Revoke a key, at once."""
        if not store.remove_key(key_id):
            raise Refusal(404, "there is no such key", "unknown")
        logger.info("key revoked", extra={"fields": {"key_id": key_id}})

    @router.get("/threshold")
    def threshold() -> Threshold:
        """Show the threshold in force, and the calibrated one."""
        return Threshold(threshold=serving.threshold, calibrated=serving.calibrated)

    @router.put("/threshold", responses=problems(409))
    def set_threshold(wanted: ThresholdWanted) -> Threshold:
        """Change the threshold of all replicas; they follow within a second."""
        serving.set_threshold(wanted.threshold)
        logger.info("threshold changed", extra={"fields": {"threshold": wanted.threshold}})
        return Threshold(threshold=serving.threshold, calibrated=serving.calibrated)

    return router
