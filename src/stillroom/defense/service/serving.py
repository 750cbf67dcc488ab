"""What happens to one account's request between its bytes and its answer; runs in a worker thread."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stillroom.defense.add import WindowScore
from stillroom.defense.contracts import Answers, Defence, Detector, Floats, Ints, Observe, Queries, softmax
from stillroom.defense.dadd import ADD, DetectAndPoison
from stillroom.defense.linking import Linked
from stillroom.defense.service.images import decode_images
from stillroom.defense.service.locks import AccountLocks
from stillroom.defense.service.metrics import Metrics
from stillroom.defense.service.refusal import Refusal
from stillroom.defense.service.settings import Settings
from stillroom.defense.service.store import Account, Decision, Store
from stillroom.defense.windows import Window, Windows
from stillroom.errors import InputError

__all__ = ["Answered", "Serving"]

REREAD = 1.0  # seconds after which the shared threshold is read again


class Answered(NamedTuple):
    """What goes to the client, and what goes to the log.

    Shapes:
        probabilities: [B, K].
    """

    probabilities: Floats
    poisoned: int
    score: float | None


class Serving:
    """Admits, decodes, classifies, defends and records.

    Args:
        observe: The model.
        classes: Names of its classes.
        shape: Channels, height and width it takes.
        defence: Turns clean answers into those that leave the house; None serves the model as it is.
        store: The accounts.
        settings: Limits of size and rate.
        metrics: Counts what happens.

    Raises:
        InputError: The model answers with another number of classes.
    """

    def __init__(
        self,
        observe: Observe,
        classes: Sequence[str],
        shape: tuple[int, int, int],
        defence: Defence | None,
        store: Store,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self.observe, self.classes, self.shape = observe, tuple(classes), shape
        self.store, self.settings, self.metrics = store, settings, metrics
        # The first answer is slow and would be the first client's; the wrong model is better refused now.
        known = observe(np.zeros((1, *shape), np.uint8)).logits.shape[1]
        if known != len(self.classes):
            raise InputError(f"the model knows {known} classes, but {len(self.classes)} names were given")
        self._locks = AccountLocks()
        self._defence, self._seen = _watched(defence)
        self.calibrated = defence.threshold if isinstance(defence, DetectAndPoison) else None
        self._read_at = -math.inf

    @property
    def threshold(self) -> float | None:
        """The threshold in force: the one all replicas share, or else the guard's own; None without one."""
        defence = self._in_force()
        return defence.threshold if isinstance(defence, DetectAndPoison) else None

    def set_threshold(self, threshold: float | None) -> None:
        """Change the threshold for all replicas; None goes back to the calibrated one.

        Raises:
            Refusal: The defence has no threshold.
        """
        if self.calibrated is None:
            raise Refusal(409, "this defence has no threshold", "threshold")
        self.store.set_setting("threshold", "" if threshold is None else repr(threshold))
        self._read_at = -math.inf

    def answer(self, account: str, parts: Sequence[bytes | str]) -> Answered:
        """Answer a request of one account.

        Args:
            account: Who asks.
            parts: Encoded images, or their base64.

        Raises:
            Refusal: The account is banned or asks too much, or an image is refused.
        """
        admission = self.store.admit(account, len(parts), self.settings.limits, time.time())
        if admission.status == "banned":
            raise Refusal(403, "this account is banned", "banned")
        if admission.retry_after > 0:
            raise Refusal(429, "too many images; try again later", "rate", retry_after=admission.retry_after)
        images = decode_images(parts, self.shape, max_pixels=self.settings.max_pixels)
        started = time.perf_counter()
        observed = self.observe(images)
        computed = time.perf_counter()
        self.metrics.model_seconds.observe(computed - started)
        self.metrics.images.inc(len(images))
        defence = self._in_force()
        if defence is None:
            return Answered(softmax(observed.logits), 0, None)
        queries = Queries(account, images, observed.features, observed.logits)
        answered = self._defend(defence, queries, trusted=admission.status == "trusted")
        self.metrics.guard_seconds.observe(time.perf_counter() - computed)
        return answered

    def _defend(self, defence: Defence, queries: Queries, *, trusted: bool) -> Answered:
        with self._locks[queries.account]:
            answers = defence.answer(queries)
            due, now = answers.scores[np.isfinite(answers.scores)], time.time()
            score = float(due[-1]) if len(due) else None
            poisoned = 0 if trusted else int(answers.altered.sum())
            if score is not None and due.max() > score:  # the store keeps the highest of what it is told
                self.store.record(queries.account, score=float(due.max()), poisoned=0, now=now)
            self.store.record(queries.account, score=score, poisoned=poisoned, now=now)
            if isinstance(defence, DetectAndPoison) and (answers.scores > defence.threshold).any():
                self.metrics.flagged.inc()
                self.store.decide(self._decision(defence, queries, answers, poisoned))
        self.metrics.poisoned.inc(poisoned)
        return Answered(softmax(queries.logits) if trusted else answers.probabilities, poisoned, score)

    def _decision(self, defence: DetectAndPoison, queries: Queries, answers: Answers, poisoned: int) -> Decision:
        worst = int(np.nanargmax(answers.scores))
        asked, evidence = 0, None
        if self._seen is not None:
            asked, evidence = self._seen.evidence(len(queries), worst)
        present = np.flatnonzero(evidence.counts) if evidence else ()
        return Decision(
            account=queries.account,
            time=time.time(),
            score=float(answers.scores[worst]),
            threshold=defence.threshold,
            asked=asked,
            poisoned=poisoned,
            classes={self.classes[c]: int(evidence.counts[c]) for c in present} if evidence else {},
            distances={self.classes[c]: float(evidence.distances[c]) for c in present} if evidence else {},
        )

    def _in_force(self) -> Defence | None:
        """Return the defence with the threshold in force, read from the store at most once a second."""
        defence, now = self._defence, time.monotonic()
        if isinstance(defence, DetectAndPoison) and now >= self._read_at + REREAD:
            self._read_at = now
            said = self.store.setting("threshold")
            threshold = float(said) if said else self.calibrated
            if threshold != defence.threshold:
                # Another object: a request under way keeps the threshold it began with.
                defence = copy.copy(defence)
                defence.threshold = float(threshold or 0.0)
                self._defence = defence
        return defence

    def account(self, name: str) -> Account:
        """Return an account.

        Raises:
            Refusal: Nobody of this name ever asked, has a key or a status.
        """
        found = self.store.account(name)
        if found is None:
            if not self.store.keys(name):
                raise Refusal(404, "there is no such account", "unknown")
            found = Account(name, "watched", 0, 0, None, None, 0.0, 0.0)
        return found


class _SeenWindows:
    """Windows that remember, for each thread, the one handed out last: what a decision rests on."""

    def __init__(self, windows: Windows, add: ADD) -> None:
        self._windows, self._add, self.size = windows, add, windows.size
        self._last = threading.local()

    def append(self, account: str, features: NDArray[np.floating], classes: Ints) -> Window:
        window = self._windows.append(account, features, classes)
        self._last.window = window
        return window

    def forget(self, account: str) -> None:
        self._windows.forget(account)

    def evidence(self, queries: int, position: int) -> tuple[int, WindowScore]:
        """Return how many queries the account had made with this one of the last request, and its scored window."""
        window: Window = self._last.window
        later = queries - position - 1
        end = len(window.classes) - later
        last = slice(max(end - self.size, 0), end)
        return window.total - later, self._add.evidence(window.features[last], window.classes[last])


def _watched(defence: Defence | None) -> tuple[Defence | None, _SeenWindows | None]:
    """Return a copy of a D-ADD whose windows can be looked at afterwards; other defences as they are."""
    if not isinstance(defence, DetectAndPoison):
        return defence, None
    if isinstance(defence.detector, Linked):
        linked = copy.copy(defence.detector)
        add = linked.add = copy.copy(linked.add)
        detector: Detector = linked
    elif isinstance(defence.detector, ADD):
        detector = add = copy.copy(defence.detector)
    else:
        return defence, None
    add.windows = seen = _SeenWindows(add.windows, add)
    defence = copy.copy(defence)
    defence.detector = detector
    return defence, seen
