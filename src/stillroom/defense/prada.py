"""PRADA: in honest traffic the distances between queries look normally distributed, in synthesised queries they do not.

M. Juuti, S. Szyller, S. Marchal, N. Asokan, "PRADA: Protecting Against DNN Model Stealing Attacks", EuroS&P 2019.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import deque
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from stillroom.cards import Card, Paper, Quirk
from stillroom.defense.contracts import Floats, Ints, Queries
from stillroom.errors import InputError, MissingExtraError, unknown_name

__all__ = ["PRADA", "PradaOptions", "PradaState", "PradaTrace", "prada_stream", "shapiro_statistic"]


@dataclass(frozen=True, kw_only=True)
class PradaOptions:
    """When PRADA tests an account and what it remembers of it.

    Args:
        check_every: Queries from one test to the next.
        per_class_min: Distances a class must have before they count in a test.
        min_distances: A test needs more than so many distances after outliers are dropped.
        outlier_sigma: Distances so many standard deviations from their mean are dropped before a test.
        max_set: Largest growing set of a class; when it is full it stays as it is. None for the paper's.
        max_distances: Distances remembered for a class, the newest. None for the paper's.

    Raises:
        InputError: A value is out of its range.
    """

    check_every: int = 10
    per_class_min: int = 10
    min_distances: int = 100
    outlier_sigma: float = 3.0
    max_set: int | None = 1000
    max_distances: int | None = 1000

    def __post_init__(self) -> None:
        for name in ("check_every", "per_class_min", "max_set", "max_distances"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.min_distances < 2:
            raise InputError(f"min_distances is {self.min_distances}; it must be at least 2")
        if not 0 < self.outlier_sigma < math.inf:
            raise InputError(f"outlier_sigma is {self.outlier_sigma}; it must be finite and above 0")


class _GrowingSet:
    """The queries of one class that lie apart from each other, and how far every query lay from them."""

    def __init__(self, first: NDArray[np.floating], options: PradaOptions) -> None:
        self._points = first[None].copy()
        self.size = 1
        self._added: list[float] = [0.0]  # the first query's distance is a 0 that takes part in mean and spread
        self.threshold = 0.0
        self.distances: deque[float] = deque(maxlen=options.max_distances)

    def add(self, query: NDArray[np.floating], limit: int | None) -> None:
        apart = self._points[: self.size] - query
        distance = math.sqrt(np.einsum("nd,nd->n", apart, apart).min())
        self.distances.append(distance)
        if distance <= self.threshold or (limit is not None and self.size >= limit):
            return
        if self.size == len(self._points):
            self._points = np.concatenate([self._points, np.empty_like(self._points)])
        self._points[self.size] = query
        self.size += 1
        self._added.append(distance)
        self.threshold = max(self.threshold, float(np.mean(self._added) - np.std(self._added)))


@dataclass
class PradaState:
    """What PRADA remembers of one account.

    Example:
        >>> state = PradaState(PradaOptions())
        >>> for value in (0.0, 3.0, 4.0):
        ...     state.take(np.array([value]), 0)
        >>> state.set_sizes, round(state.thresholds[0], 3)
        ({0: 3}, 0.086)
    """

    options: PradaOptions
    total: int = 0
    statistic: float = math.nan  # of the last test; NaN before the first
    tested: bool = False  # whether the last query brought a test
    sets: dict[int, _GrowingSet] = field(default_factory=dict)

    @property
    def set_sizes(self) -> dict[int, int]:
        """Size of the growing set of each class seen."""
        return {label: growing.size for label, growing in self.sets.items()}

    @property
    def thresholds(self) -> dict[int, float]:
        """Distance above which a query joins the growing set, for each class seen."""
        return {label: growing.threshold for label, growing in self.sets.items()}

    def take(self, query: NDArray[np.floating], label: int) -> None:
        """Take in a query [d] and its predicted class, and test the account when a test is due."""
        if label in self.sets:
            self.sets[label].add(query, self.options.max_set)
        else:
            self.sets[label] = _GrowingSet(query, self.options)
        self.tested = False
        if self.total % self.options.check_every == 0:
            found = self._test()
            if found is not None:
                self.statistic, self.tested = found, True
        self.total += 1

    def _test(self) -> float | None:
        options = self.options
        pools = [own.distances for own in self.sets.values() if len(own.distances) >= options.per_class_min]
        values = np.fromiter(itertools.chain.from_iterable(pools), np.float64)
        if len(values) <= options.min_distances:
            return None
        kept = values[np.abs(values - values.mean()) < options.outlier_sigma * values.std()]
        return shapiro_statistic(kept) if len(kept) > options.min_distances else None


def shapiro_statistic(values: Floats) -> float:
    """Return Shapiro and Wilk's W: 1 for a perfectly normal sample, smaller the less normal it is.

    Shapes:
        values: [n], not all equal.

    Raises:
        MissingExtraError: scipy is not installed.

    Example:
        >>> round(shapiro_statistic(np.arange(10.0)), 4)
        0.9702
    """
    try:
        from scipy.stats import shapiro
    except ImportError as error:
        raise MissingExtraError("scipy", "serve") from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*p-value", category=UserWarning)  # which nobody looks at
        return float(shapiro(values).statistic)


class PradaTrace(NamedTuple):
    """What PRADA made of a stream of queries.

    Shapes:
        set_size: [T], points in all growing sets after each query. statistic: [T], W where a test was run, else NaN.
        alarm: [T], bool.
    """

    set_size: Ints
    statistic: Floats
    alarm: NDArray[np.bool_]
    state: PradaState  # after the last query


def prada_stream(
    queries: NDArray[np.floating], classes: Ints, *, delta: float = 0.95, options: PradaOptions | None = None
) -> PradaTrace:
    """Run PRADA over the queries of one account.

    For a query x of predicted class c, ``d = min_{g in G_c} ||x - g||`` joins the class' distances; where
    ``d > T_c`` the query joins the growing set G_c, d joins D_c, and ``T_c = max(T_c, mean(D_c) - std(D_c))``. Every
    few queries the distances of all classes are pooled, outliers dropped, and tested: ``W < delta`` is an alarm, which
    stands until the next test.

    Args:
        queries: Images or features, flattened.
        classes: Predicted.
        delta: Smallest W of honest traffic.
        options: When to test and what to remember.

    Shapes:
        queries: [T, d]. classes: [T].

    Raises:
        InputError: The lengths differ, or a query is not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> trace = prada_stream(rng.standard_normal((300, 2)), np.zeros(300, np.int64))
        >>> bool(trace.alarm[-1]), int(trace.set_size[-1])
        (True, 74)
    """
    if len(queries) != len(classes):
        raise InputError(f"{len(queries)} queries and {len(classes)} classes; give as many of both")
    state = PradaState(options or PradaOptions())
    found = _watch(state, queries, classes)
    statistic = np.array([value if tested else math.nan for value, tested, _ in found])
    last = np.array([value for value, _, _ in found])
    return PradaTrace(np.array([size for _, _, size in found], np.int64), statistic, last < delta, state)


def _watch(
    state: PradaState, queries: NDArray[np.floating] | NDArray[np.uint8], classes: NDArray[np.integer]
) -> list[tuple[float, bool, int]]:
    """Take in queries [T, d]; return for each the statistic in force, whether it is new, and the points remembered."""
    points = np.asarray(queries, np.float64 if queries.dtype == np.float64 else np.float32)
    if not np.isfinite(points).all():
        raise InputError("a query is not finite")
    found = []
    for point, label in zip(points, classes.tolist(), strict=True):
        state.take(point, label)
        found.append((state.statistic, state.tested, sum(state.set_sizes.values())))
    return found


class PRADA:
    """The detector of synthesised queries; its score is ``1 - W`` of the account's last test, its threshold 1 - delta.

    A score is NaN until the account's first test, which comes after some hundred queries; between tests it keeps its
    value, so an alarm stands until the next test. What it remembers lies in this process' memory: for every account its
    distinct queries, up to the caps in ``options``.

    Args:
        delta: Smallest W of honest traffic, 0.9 to 0.96 in the paper, by data set. Calibrate ``threshold`` instead for
            a chosen share of false alarms.
        space: What distances are taken between: the images, as in the paper, or the model's features, which are faster.
        options: When to test and what to remember.

    Raises:
        InputError: ``delta`` is outside 0..1, or ``space`` does not exist.
    """

    card: ClassVar[Card] = Card(
        name="prada",
        summary="Recognises synthesised queries by distances between them that are not normally distributed.",
        papers=(
            Paper(
                title="PRADA: Protecting Against DNN Model Stealing Attacks",
                authors="M. Juuti, S. Szyller, S. Marchal, N. Asokan",
                venue="EuroS&P",
                year=2019,
                identifier="arXiv:1805.02628",
            ),
        ),
        standing="verified",
        ledger=(
            Quirk(
                paper="all distances and all growing sets of an account are kept",
                code="the same: memory and time per query grow without bound",
                default="neither",
                option="options=PradaOptions(max_set=None, max_distances=None)",
            ),
            Quirk(
                paper="a test with enough distances",
                code="more than 100 are needed after outliers of 3 standard deviations are dropped, every 10 queries",
                default="code",
                option="options=PradaOptions(...)",
            ),
            Quirk(
                paper="an alarm",
                code="the demonstration's server answers with its three highest logits shuffled",
                default="neither",
            ),
        ),
    )

    def __init__(
        self,
        *,
        delta: float = 0.95,
        space: Literal["images", "features"] = "images",
        options: PradaOptions | None = None,
    ) -> None:
        if not 0 < delta < 1:
            raise InputError(f"delta is {delta}; it must lie between 0 and 1")
        if space not in get_args(Literal["images", "features"]):
            raise unknown_name("space", space, ("images", "features"))
        self.delta, self.space, self.options = delta, space, options or PradaOptions()
        self._accounts: dict[str, PradaState] = {}

    @property
    def threshold(self) -> float:
        """The score above which an account is alarmed about: 1 - delta."""
        return 1 - self.delta

    def watch(self, queries: Queries) -> Floats:
        """Take in one account's consecutive queries and return their scores [B]; NaN before the first test."""
        points = queries.images if self.space == "images" else queries.features
        state = self._accounts.setdefault(queries.account, PradaState(self.options))
        found = _watch(state, points.reshape(len(queries), -1), queries.logits.argmax(1))
        return 1 - np.array([statistic for statistic, _, _ in found])

    def forget(self, account: str) -> None:
        """Drop what is known of an account."""
        self._accounts.pop(account, None)
