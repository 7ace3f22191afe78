"""From the snapshots of the engine's processes to Prometheus's families."""

from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from vllm_edsd.observability.catalog import BY_NAME, COMMON
from vllm_edsd.observability.snapshots import read

FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class SnapshotCollector(Collector):
    """Register it with the registry behind /metrics; every scrape reads `directory` anew."""

    def __init__(self, directory: Path):
        self.directory = directory

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Any] = {}
        for snapshot in read(self.directory):
            for name, series in snapshot["values"].items():
                family = families.setdefault(name, _family(name))
                for labels, value in series:
                    family.add_metric([*snapshot["common"], *labels], value)
            for name, held in snapshot["histograms"].items():
                family = families.setdefault(name, _family(name))
                family.add_metric(snapshot["common"], _cumulative(BY_NAME[name].buckets, held[:-1]), held[-1])
        yield from families.values()

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are the catalogue's, and the directory is empty at first."""
        return ()


def _family(name: str) -> Metric:
    metric = BY_NAME[name]
    labels = [*COMMON, *metric.labels]
    if metric.kind == "histogram":
        return HistogramMetricFamily(name, metric.meaning, labels=labels)
    return FAMILIES[metric.kind](name, metric.meaning, labels=labels)


def _cumulative(bounds: tuple[float, ...], counts: list[float]) -> list[tuple[str, float]]:
    return list(zip([*(str(float(bound)) for bound in bounds), "+Inf"], accumulate(counts), strict=True))
