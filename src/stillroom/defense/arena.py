"""Where defences are tried: one victim, honest accounts of several kinds, and thieves, all seen by the model once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stillroom.data.images import ImageData
from stillroom.defense.add import Reference
from stillroom.defense.calibrate import draw_windows, quantile_threshold
from stillroom.defense.contracts import Answers, Defence, Detector, Floats, Ints, Queries, softmax
from stillroom.defense.corruptions import CORRUPTIONS, corrupt
from stillroom.defense.endpoint import Endpoint
from stillroom.errors import InputError

__all__ = [
    "Arena",
    "Honest",
    "Seen",
    "Undefended",
    "deal",
    "first_detection",
    "honest_answers",
    "threshold_for",
    "watched",
]

REQUEST = 16  # queries of a request


@dataclass(frozen=True)
class Seen:
    """Images with what the model makes of them.

    Shapes:
        images: [N, C, H, W]. features: [N, d]. logits: [N, K]. labels: [N], true classes, -1 where unknown.
    """

    images: NDArray[np.uint8]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]
    labels: Ints

    @classmethod
    def of(cls, endpoint: Endpoint, images: NDArray[np.uint8], labels: Ints | None = None) -> Seen:
        """Show images to the model."""
        known = np.full(len(images), -1, np.int64) if labels is None else np.asarray(labels, np.int64)
        return cls(images, *endpoint.observe(images), known)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def subset(self, positions: Ints) -> Seen:
        """Return some of them."""
        return Seen(self.images[positions], self.features[positions], self.logits[positions], self.labels[positions])

    def requests(self, account: str, positions: Ints) -> Iterator[Queries]:
        """Yield one account's queries, request by request."""
        for start in range(0, len(positions), REQUEST):
            own = positions[start : start + REQUEST]
            yield Queries(account, self.images[own], self.features[own], self.logits[own])


class Undefended:
    """Answers as the model does."""

    def answer(self, queries: Queries) -> Answers:
        """Answer one account's consecutive queries."""
        nothing = np.zeros(len(queries), bool)
        return Answers(softmax(queries.logits), nothing, np.full(len(queries), np.nan))


@dataclass(frozen=True)
class Honest:
    """How honest accounts fared behind a defence."""

    accuracy: float  # with the defence: poisoned answers count as what they return
    without: float  # the model's own
    altered: float  # share of answers that are another than the model's
    flagged_accounts: float  # share of accounts that got at least one altered answer


@dataclass(frozen=True)
class Arena:
    """One victim, and its held-out images dealt to three parties that share none.

    Args:
        endpoint: The victim.
        data: What it was trained on.
        reference: Class-wise normals of its training features.
        thief: What a thief has of the victim's own kind of images.
        calibration: What thresholds are chosen on.
        honest: What honest accounts ask.
    """

    endpoint: Endpoint
    data: ImageData
    reference: Reference
    thief: Seen
    calibration: Seen
    honest: Seen

    def honest_kinds(self, severities: tuple[int, ...] = (2, 4)) -> Iterator[tuple[str, Seen, float | None]]:
        """Yield kinds of honest traffic: a name, the images, and the concentration of the accounts' class mixes."""
        yield "held-out images", self.honest, None
        yield "accounts of few classes", self.honest, 0.3
        for severity in severities:
            yield f"corrupted, severity {severity}", self._corrupted(severity), None

    def _corrupted(self, severity: int) -> Seen:
        """Corrupt each honest image in one way, all ways in turn."""
        images = self.honest.images.copy()
        for number, name in enumerate(CORRUPTIONS):
            own = slice(number, None, len(CORRUPTIONS))
            if len(images[own]):
                images[own] = corrupt(images[own], name, severity, seed=number)
        return Seen.of(self.endpoint, images, self.honest.labels)


def deal(
    seen: Seen, accounts: int, asked: int, stream: np.random.Generator, concentration: float | None = None
) -> Ints:
    """Deal images to accounts, [accounts, asked]; one with more queries than there are images asks some again."""
    if concentration is None and len(seen) < asked:
        return stream.integers(len(seen), size=(accounts, asked))
    return draw_windows(len(seen), asked, accounts, stream, labels=seen.labels, concentration=concentration)


def watched(detector: Detector, seen: Seen, accounts: Ints, name: str) -> Floats:
    """Return the scores [A, n] of accounts that ask the images at these positions [A, n]."""
    return np.stack(
        [
            np.concatenate([detector.watch(queries) for queries in seen.requests(f"{name} {number}", positions)])
            for number, positions in enumerate(accounts)
        ]
    )


def threshold_for(
    make: Callable[[], Detector], seen: Seen, *, accounts: int, asked: int, target_fpr: float, seed: int
) -> float:
    """Choose a detector's threshold on honest accounts with the data's mix of classes.

    Raises:
        InputError: The accounts are too short for the detector to score anything.
    """
    dealt = deal(seen, accounts, asked, np.random.default_rng(seed))
    scores = watched(make(), seen, dealt, "calibration")
    scores = scores[np.isfinite(scores)]
    if len(scores) == 0:
        raise InputError(f"accounts of {asked} queries are too short for the detector to score; let them ask more")
    return quantile_threshold(scores, target_fpr)


def honest_answers(defence: Defence, seen: Seen, accounts: Ints, name: str) -> Honest:
    """Let honest accounts [A, n] ask, and say how they fared.

    Raises:
        InputError: The images have no labels.
    """
    if (seen.labels < 0).any():
        raise InputError("honest images need labels, or nobody knows whether their answers are right")
    right = altered = own = 0
    flagged = 0
    for number, positions in enumerate(accounts):
        answers = [defence.answer(queries) for queries in seen.requests(f"{name} {number}", positions)]
        labels, clean = seen.labels[positions], seen.logits[positions].argmax(1)
        said = np.concatenate([answer.probabilities.argmax(1) for answer in answers])
        changed = np.concatenate([answer.altered for answer in answers])
        right += int((said == labels).sum())
        own += int((clean == labels).sum())
        altered += int(changed.sum())
        flagged += int(changed.any())
    return Honest(right / accounts.size, own / accounts.size, altered / accounts.size, flagged / len(accounts))


def first_detection(scores: Floats, threshold: float) -> list[int | None]:
    """Return for each account [A, n] the number (from 1) of its first query above the threshold."""
    return [int(np.argmax(row)) + 1 if row.any() else None for row in scores > threshold]
