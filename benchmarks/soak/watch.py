"""What a soak looks at while it runs: the memory of all of a server's processes, its health and its metrics."""

import contextlib
import threading
import time
from dataclasses import dataclass
from types import TracebackType

import psutil
from prometheus_client.parser import text_string_to_metric_families

from vllm_edsd.engine.server import Server
from vllm_edsd.errors import UserError

Series = dict[str, dict[tuple[tuple[str, str], ...], float]]


@dataclass(frozen=True)
class Sample:
    """`seconds` since the watch began, `mebibytes` by process, and by requests in a step whether the guard drafts."""

    seconds: float
    mebibytes: dict[str, float]
    healthy: bool
    guard: dict[str, float]


class Watch:
    """Takes a sample every few seconds in a thread of its own; a context manager."""

    def __init__(self, server: Server, every: float = 2.0):
        self.server = server
        self.every = every
        self.samples: list[Sample] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self.begun = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.ended.wait(self.every):
            healthy, guard = True, {}
            try:
                self.server.get("/health")
                guard = by_label(metrics(self.server).get("edsd:guard_drafts", {}), "requests")
            except UserError:
                healthy = False
            seconds = time.monotonic() - self.begun
            self.samples.append(Sample(seconds, memory(self.server), healthy, guard))


def family(server: Server) -> list[psutil.Process]:
    """The server's process and all that it started."""
    parent = psutil.Process(server.process.pid)
    return [parent, *parent.children(recursive=True)]


def memory(server: Server) -> dict[str, float]:
    """MiB resident in each process of the family, by name; a page that two of them share counts in both."""
    found: dict[str, float] = {}
    for process in family(server):
        with contextlib.suppress(psutil.NoSuchProcess):
            name, resident = process.name(), process.memory_info().rss / (1 << 20)
            found[name] = found.get(name, 0.0) + round(resident, 1)
    return found


def metrics(server: Server) -> Series:
    """All samples of /metrics by name and labels."""
    found: Series = {}
    for metric in text_string_to_metric_families(server.get("/metrics")):
        for sample in metric.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def by_label(series: dict[tuple[tuple[str, str], ...], float], label: str) -> dict[str, float]:
    """Values by that label alone, summed over the others."""
    found: dict[str, float] = {}
    for labels, value in series.items():
        key = dict(labels)[label]
        found[key] = found.get(key, 0.0) + value
    return found
