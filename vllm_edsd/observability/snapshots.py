"""How the figures of the engine's processes reach the one that answers /metrics: a small file of each in one directory.

The file is replaced once a second; a process that hangs or died shows by its heartbeat.
"""

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_edsd.observability.tally import Tally

# Set by the server's first process for all others: the directory.
DIRECTORY = "VLLM_EDSD_METRICS_DIR"
PERIOD = 1.0  # seconds
HEARTBEAT = "edsd:heartbeat_timestamp_seconds"


class Writer:
    """Writes `tally` to its file in `directory` every second, from a thread of its own, as long as the process lives.

    `place` ("engine" or "worker") is what the heartbeat is labelled with.
    """

    def __init__(self, tally: Tally, directory: Path, place: str):
        self.tally = tally
        self.place = place
        self.path = directory / f"{place}-{tally.common[1]}.json"
        self.failed = False

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"edsd-metrics-{self.place}", daemon=True).start()

    def _run(self) -> None:
        while True:
            self.write()
            time.sleep(PERIOD)

    def write(self) -> None:
        """Replaces the file. A disk that is full or gone costs the figures, never the server: it is logged once."""
        beside = self.path.with_suffix(".partial")
        try:
            self.tally.put(HEARTBEAT, time.time(), self.place)
            beside.write_text(json.dumps(self.tally.snapshot()))
            beside.replace(self.path)
            self.failed = False
        except OSError as error:
            if not self.failed:
                logging.getLogger("vllm.edsd").warning(
                    "metrics are not written to %s (%s); free disk space or set TMPDIR to a writable place", self.path, error
                )
            self.failed = True


def read(directory: Path) -> Iterator[dict[str, Any]]:
    """The newest snapshot of every process that has written one."""
    for path in sorted(directory.glob("*.json")):
        yield json.loads(path.read_text())
