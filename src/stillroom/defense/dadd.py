"""D-ADD: watch each account's window of queries, and answer at random while it looks like theft."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.cards import Card, Paper, Quirk
from stillroom.defense.add import Reference, WindowScore, window_score
from stillroom.defense.contracts import Answers, Detector, Floats, Ints, Queries, softmax
from stillroom.defense.windows import Window, Windows
from stillroom.errors import InputError, unknown_name

__all__ = ["ADD", "DetectAndPoison", "Policy"]

Policy = Literal["sliding", "tumbling"]


class ADD:
    """The account-aware detector: scores the last W queries of an account against the training data.

    Args:
        reference: Class-wise normals of the training features.
        windows: Keeps the accounts' queries; its ``size`` is W.
        min_queries: Queries an account must have made before it is scored; W when not given.
        expected: What is taken away from each class distance so that scores do not depend on the mix of classes, see
            :func:`~stillroom.defense.expected.fit_expected`; the paper's score does without.
        policy: ``sliding`` scores with every query the last W; ``tumbling`` scores each W queries once, with the last
            of them (the authors' experiments).

    Raises:
        InputError: ``min_queries`` lies outside 1..W, the policy does not exist, or ``expected`` does not fit.
    """

    card: ClassVar[Card] = Card(
        name="add",
        summary="Recognises a stealing account by the distribution of its queries in feature space.",
        papers=(
            Paper(
                title="Defense Against Model Stealing Based on Account-Aware Distribution Discrepancy",
                authors="J.-P. Mei, W. Zhang, J. Chen, X. Zhang, T. Zhu",
                venue="AAAI",
                year=2025,
                identifier="arXiv:2503.12497",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="Fréchet distance of the class normals",
                code="roots of a product that is not symmetric, in float32: noise of order 0.1 at 256 features",
                default="paper",
            ),
            Quirk(
                paper="a user's queries arrive one by one",
                code="scores and answers batches of W queries, drops the last incomplete one",
                default="paper",
                option="policy='tumbling'",
            ),
            Quirk(
                paper="the score is the weighted mean of the class distances",
                code="the same; windows of few classes score low, whoever asks",
                default="neither",
                option="expected=None",
            ),
            Quirk(
                paper="random answers to flagged queries",
                code="fresh random numbers each time, so a repeated query betrays the defence",
                default="neither",
                option="poison=fresh_poison",
            ),
        ),
    )

    def __init__(
        self,
        reference: Reference,
        windows: Windows,
        *,
        expected: Floats | None = None,
        min_queries: int | None = None,
        policy: Policy = "sliding",
    ) -> None:
        self.reference, self.windows, self.policy = reference, windows, policy
        if expected is not None and expected.shape != (len(reference.mean), windows.size + 1):
            raise InputError(
                f"expected distances of shape {expected.shape} do not fit {len(reference.mean)} classes and windows of "
                f"{windows.size}"
            )
        self.expected = expected
        self.min_queries = windows.size if min_queries is None else min_queries
        if not 1 <= self.min_queries <= windows.size:
            raise InputError(f"min_queries is {self.min_queries}; it must lie in 1..{windows.size}, the window")
        if policy not in get_args(Policy):
            raise unknown_name("policy", policy, get_args(Policy))

    def watch(self, queries: Queries) -> Floats:
        """Take in one account's consecutive queries and return their scores [B]; NaN where none is due.

        Raises:
            InputError: A feature or a logit is not finite; nothing was kept.
        """
        # Before they are kept: one such query would spoil all windows it is in.
        if not (np.isfinite(queries.features).all() and np.isfinite(queries.logits).all()):
            raise InputError("a feature or a logit is not finite")
        classes = queries.logits.argmax(1).astype(np.int64)
        return self.score(self.windows.append(queries.account, queries.features, classes), len(queries))

    def score(self, window: Window, new: int) -> Floats:
        """Return the scores [new] of the newest queries of an account's window; NaN where none is due."""
        scores = np.full(new, np.nan)
        size, known = self.windows.size, len(window.classes)
        for position in range(new):
            end = known - new + position + 1
            asked = window.total - new + position + 1
            due = asked >= self.min_queries if self.policy == "sliding" else asked % size == 0
            if due:
                last = slice(max(end - size, 0), end)
                scores[position] = self.evidence(window.features[last], window.classes[last]).score
        return scores

    def evidence(self, features: NDArray[np.floating], classes: Ints) -> WindowScore:
        """Score one window, and say what the score consists of.

        Shapes:
            features: [n, d]. classes: [n].
        """
        return window_score(self.reference, features, classes, self.expected)


class DetectAndPoison:
    """A detector, a threshold, and random answers above it; with :class:`ADD` this is D-ADD.

    Only what a flagged account asks is answered at random, and only while its score stays above the threshold. Under
    the tumbling policy a flagged window is poisoned as a whole as far as its queries came in one request.

    Args:
        detector: Scores each query with those before it.
        threshold: Scores above it are malicious. It belongs to one model, window and mix of classes: calibrate it, see
            :func:`stillroom.defense.calibrate.calibrate`.
        poison: Logits instead of the model's, such as :class:`~stillroom.defense.poison.KeyedPoison`.
        whole: Queries before a flagged one that are poisoned with it when they came in the same request: W - 1 for
            tumbling windows.
    """

    card: ClassVar[Card] = ADD.card

    def __init__(
        self, detector: Detector, threshold: float, poison: Callable[[Queries], Floats], *, whole: int = 0
    ) -> None:
        self.detector, self.threshold, self.poison, self.whole = detector, threshold, poison, whole

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries."""
        scores = self.detector.watch(queries)
        flagged: NDArray[np.bool_] = scores > self.threshold  # NaN is not above anything
        for position in np.flatnonzero(flagged) if self.whole else ():
            flagged[max(position - self.whole, 0) : position] = True
        probabilities = softmax(queries.logits)
        if flagged.any():
            chosen = Queries(
                queries.account, queries.images[flagged], queries.features[flagged], queries.logits[flagged]
            )
            probabilities[flagged] = softmax(self.poison(chosen))
        return Answers(probabilities, flagged, scores)
