"""What both databases keep, in which form, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.defense.contracts import Ints
from stillroom.defense.service.store import Decision, Order, Status
from stillroom.defense.windows import Window
from stillroom.errors import InputError, unknown_name

__all__ = [
    "FORMAT",
    "KEPT_DECISIONS",
    "QueryFormat",
    "check_order",
    "check_status",
    "decision_from_json",
    "decision_to_json",
    "require_same_guard",
]

FORMAT = 1  # of the database; a change that old code would misread raises it
KEPT_DECISIONS = 1000  # of each account, so that a thief who asks on neither fills the disk nor hides another


class QueryFormat:
    """One query as bytes: its predicted class and its features, little-endian, 4 bytes each.

    Args:
        size: W, queries a window holds.
        width: Features of a query.

    Raises:
        InputError: One of them is not positive.

    Example:
        >>> form = QueryFormat(16, 2)
        >>> rows = form.rows(np.array([[0.5, 1.0]], np.float32), np.array([7]))
        >>> form.window(rows, 1).classes.tolist()
        [7]
    """

    def __init__(self, size: int, width: int) -> None:
        if size < 1 or width < 1:
            raise InputError(f"a store for windows of {size} queries with {width} features makes no sense; both count")
        self.size, self.width = size, width
        self.dtype = np.dtype([("class", "<i4"), ("features", "<f4", (width,))])

    def check(self, features: NDArray[np.floating], classes: Ints) -> tuple[NDArray[np.float32], Ints]:
        """Return the queries in the types they are kept in.

        Raises:
            InputError: There is none, their shapes are wrong, a feature is not finite, or a class is no class.
        """
        kept, labels = np.asarray(features, np.float32), np.asarray(classes, np.int64)
        if kept.ndim != 2 or kept.shape[1] != self.width or labels.shape != kept.shape[:1] or len(labels) == 0:
            raise InputError(
                f"features {kept.shape} and classes {labels.shape} are not the store's [n, {self.width}] and [n]"
            )
        if not np.isfinite(kept).all():
            raise InputError("a feature is not finite; it would spoil every score of the window")
        if labels.min() < 0 or labels.max() >= 2**31:
            raise InputError("a predicted class is negative or beyond any number of classes")
        return kept, labels

    def rows(self, features: NDArray[np.float32], classes: Ints) -> list[bytes]:
        """Return each query as bytes."""
        labels, values = classes.astype("<i4"), np.ascontiguousarray(features, "<f4")
        return [label.tobytes() + value.tobytes() for label, value in zip(labels, values, strict=True)]

    def window(self, rows: Sequence[bytes], total: int) -> Window:
        """Return the window that consists of these queries."""
        packed = np.frombuffer(b"".join(rows), self.dtype)
        return Window(packed["features"].astype(np.float32), packed["class"].astype(np.int64), total)


def decision_to_json(decision: Decision) -> str:
    """Return a decision as one line of JSON."""
    return json.dumps(asdict(decision), ensure_ascii=False)


def decision_from_json(text: str | bytes) -> Decision:
    """Return the decision that was written."""
    return Decision(**json.loads(text))


def require_same_guard(where: str, form: QueryFormat, identity: str, found: dict[str, str]) -> None:
    """Check what a database says of itself against the guard that opens it.

    Raises:
        InputError: It was made for another guard, or by another version of stillroom.
    """
    if found["format"] != str(FORMAT):
        raise InputError(f"{where} has format {found['format']}, this stillroom writes {FORMAT}; give another one")
    ours = {"size": str(form.size), "width": str(form.width), "identity": identity}
    if {name: found[name] for name in ours} != ours:
        raise InputError(
            f"{where} holds windows of {found['size']} x {found['width']} features of guard {found['identity']!r}, "
            f"this one has {form.size} x {form.width} of {identity!r}; give each guard a database of its own"
        )


def check_status(status: Status) -> None:
    """Refuse a status that does not exist."""
    if status not in get_args(Status):
        raise unknown_name("status", status, get_args(Status))


def check_order(order: Order) -> None:
    """Refuse an order that does not exist."""
    if order not in get_args(Order):
        raise unknown_name("order", order, get_args(Order))
