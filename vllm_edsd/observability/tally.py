"""The figures of one process, counted as it runs, for the server to export."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vllm_edsd.observability.catalog import BY_NAME

Labels = tuple[str, ...]
MANY = 4096  # numbers that wait to be sorted into histograms: once a second is often enough where snapshots are taken


class Tally:
    """Counts what the catalogue names; anything else is a KeyError. Safe to read from another thread.

    `common` are the values of the labels that all series carry: model name, engine.
    """

    def __init__(self, common: Labels):
        self.common = common
        self.values: dict[str, dict[Labels, float]] = {}
        self.histograms: dict[str, np.ndarray] = {}  # counts by bucket, the infinite one's, then the sum of the values
        self.fresh: dict[str, list[float]] = {}  # not yet sorted into them
        self.watched: dict[str, Callable[[], None]] = {}
        self.lock = threading.Lock()

    def count(self, name: str, amount: float = 1.0, *labels: str) -> None:
        """Adds to a counter."""
        with self.lock:
            series = self.values.setdefault(_known(name, "counter", labels), {})
            series[labels] = series.get(labels, 0.0) + amount

    def total(self, name: str, value: float, *labels: str) -> None:
        """Sets a counter that is kept elsewhere."""
        with self.lock:
            self.values.setdefault(_known(name, "counter", labels), {})[labels] = value

    def put(self, name: str, value: float, *labels: str) -> None:
        """Sets a gauge."""
        with self.lock:
            self.values.setdefault(_known(name, "gauge", labels), {})[labels] = value

    def replace(self, name: str, *labels: str) -> None:
        """Makes `labels` the only series of an info gauge."""
        with self.lock:
            self.values[_known(name, "gauge", labels)] = {labels: 1.0}

    def observe(self, name: str, values: Any) -> None:
        """Adds numbers (a sequence or an array) to a histogram."""
        _known(name, "histogram", ())
        flat = np.asarray(values, dtype=float).ravel().tolist()
        with self.lock:
            fresh = self.fresh.setdefault(name, [])
            fresh += flat
            if len(fresh) > MANY:
                self._sort()

    def _sort(self) -> None:
        for name, fresh in self.fresh.items():
            self.histograms[name] = self.histograms.get(name, 0.0) + _sorted(name, np.array(fresh), np.ones(len(fresh)))
        self.fresh.clear()

    def spread(self, name: str, numbers: Mapping[float, float]) -> None:
        """Sets a histogram that is kept elsewhere: how often each value was seen."""
        values, counts = np.array([*numbers], dtype=float), np.array([*numbers.values()], dtype=float)
        with self.lock:
            self.histograms[name] = _sorted(name, values, counts)

    def watch(self, what: str, refresh: Callable[[], None]) -> None:
        """Has `refresh` called before each snapshot, in the place of a former one for the same `what`."""
        self.watched[what] = refresh

    def snapshot(self) -> dict[str, Any]:
        """All series, for json: `{"common": [..], "values": {name: [[labels, value], ..]}, "histograms": {name: [..]}}`."""
        for refresh in list(self.watched.values()):
            refresh()
        with self.lock:
            self._sort()
            return {
                "common": list(self.common),
                "values": {name: [[list(k), v] for k, v in series.items()] for name, series in self.values.items()},
                "histograms": {name: held.tolist() for name, held in self.histograms.items()},
            }


def _sorted(name: str, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    buckets = BY_NAME[_known(name, "histogram", ())].buckets
    places = np.searchsorted(buckets, values)
    return np.append(np.bincount(places, counts, len(buckets) + 1), values @ counts)


def _known(name: str, kind: str, labels: Labels) -> str:
    metric = BY_NAME[name]
    if metric.kind != kind or len(metric.labels) != len(labels):
        raise ValueError(f"{name} is a {metric.kind} with labels {metric.labels}, not a {kind} with {labels}")
    return name
