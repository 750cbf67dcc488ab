"""What the endpoints take and give, as the OpenAPI schema says it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from stillroom.defense.service.keys import ACCOUNT
from stillroom.defense.service.store import Status

__all__ = [
    *("AccountKeys", "AccountList", "AccountView", "DecisionList", "DecisionView", "KeyMade", "KeyWanted", "KeyView"),
    *("Overview", "Prediction", "Predictions", "Problem", "StatusWanted", "Threshold", "ThresholdWanted", "problems"),
]


class Problem(BaseModel):
    """Why a request failed, in one line."""

    detail: str


class Prediction(BaseModel):
    """The answer for one image."""

    label: str
    probabilities: dict[str, float] | None = Field(description="By class; null where only labels are served")


class Predictions(BaseModel):
    """The answers, in the order of the images."""

    predictions: list[Prediction]


class _Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class KeyWanted(_Wanted):
    """Whose key to make."""

    account: str = Field(pattern=ACCOUNT)


class KeyMade(BaseModel):
    """A new key; it is never shown again."""

    key: str
    key_id: str
    account: str


class KeyView(BaseModel):
    """A key, without its secret."""

    key_id: str
    created: float


class AccountKeys(BaseModel):
    """The keys of an account."""

    keys: list[KeyView]


class StatusWanted(_Wanted):
    """What to do with an account."""

    status: Status


class AccountView(BaseModel):
    """An account, as the store keeps it."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    status: Status
    queries: int
    poisoned: int
    score: float | None = Field(description="The latest; null where none was due yet")
    highest: float | None
    first_seen: float = Field(description="Seconds since the epoch; 0 when it never asked")
    last_seen: float


class AccountList(BaseModel):
    """A page of accounts, highest first, and the threshold they are held against."""

    accounts: list[AccountView]
    threshold: float | None


class DecisionView(BaseModel):
    """A flagged request with its evidence."""

    model_config = ConfigDict(from_attributes=True)

    account: str
    time: float
    score: float
    threshold: float
    asked: int = Field(description="Queries of the account until then")
    poisoned: int = Field(description="Answers of the request that were answered at random; 0 for a trusted account")
    classes: dict[str, int] = Field(description="Queries in the window by predicted class")
    distances: dict[str, float] = Field(description="Squared Fréchet distance by predicted class")


class DecisionList(BaseModel):
    """A page of decisions, newest first."""

    decisions: list[DecisionView]


class ThresholdWanted(_Wanted):
    """The threshold to hold accounts against; null for the calibrated one."""

    threshold: float | None = Field(allow_inf_nan=False)


class Threshold(BaseModel):
    """The threshold in force, and the calibrated one."""

    threshold: float | None
    calibrated: float | None


class Overview(Threshold):
    """How many accounts and decisions there are."""

    counts: dict[str, int]


_SAID = {
    400: "The request is malformed",
    401: "The key is missing or wrong",
    403: "The account is banned",
    404: "There is no such thing",
    408: "The request came too slowly",
    409: "The defence has no threshold",
    413: "The request, or an image in it, is too large",
    415: "The request or an image has another format",
    422: "The request or an image cannot be used",
    429: "The account asks too much; see Retry-After",
    503: "The service is busy or not ready; see Retry-After",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what FastAPI's ``responses`` wants for these statuses."""
    return {status: {"model": Problem, "description": _SAID[status]} for status in statuses}
