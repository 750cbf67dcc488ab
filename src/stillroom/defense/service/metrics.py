"""What Prometheus reads: counts and times, never an account's name."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from stillroom.defense.service.store import Store

__all__ = ["Metrics"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The counters of one application, in a registry of its own."""

    def __init__(self, store: Store) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            "stillroom_requests", "Requests by route and status.", ["route", "status"], registry=own
        )
        self.refused = Counter("stillroom_refused", "Requests that were refused, by reason.", ["reason"], registry=own)
        self.images = Counter("stillroom_images", "Images classified.", registry=own)
        self.poisoned = Counter("stillroom_poisoned", "Answers that are not the model's own.", registry=own)
        self.flagged = Counter("stillroom_flagged", "Requests with a score above the threshold.", registry=own)
        self.seconds = Histogram(
            "stillroom_request_seconds", "Time per request.", ["route"], registry=own, buckets=_SECONDS
        )
        self.model_seconds = Histogram(
            "stillroom_model_seconds", "Time in the model, per request.", registry=own, buckets=_SECONDS
        )
        self.guard_seconds = Histogram(
            "stillroom_guard_seconds", "Time in defence and account store, per request.", registry=own, buckets=_SECONDS
        )
        self.registry.register(_Counts(store))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _Counts(Collector):
    """Asks the store at each reading, so that every replica says the same."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> list[GaugeMetricFamily]:
        """Name what will come, without asking the store."""
        return [_family()]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        counts = self._store.counts()
        family = _family()
        for status in ("watched", "trusted", "banned"):
            family.add_metric([status], counts.get(status, 0))
        yield family


def _family() -> GaugeMetricFamily:
    return GaugeMetricFamily("stillroom_accounts", "Accounts by status.", labels=["status"])
