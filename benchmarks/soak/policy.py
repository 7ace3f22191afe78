"""EVICT with faults that the soak can switch on; installed for its server as a package of its own."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vllm_edsd.policy.base import Drafting
from vllm_edsd.policy.evict import Evict

FAULT = "SOAK_FAULT"  # environment variable: a file that names the fault, absent where there is none
SLOW, NONFINITE = "slow", "nonfinite"
SECONDS = 1.0  # more than a draft saves where other programs make steps take 0.2 s


class FaultyEvict(Evict):
    """EVICT; under SLOW every draft takes SECONDS longer, under NONFINITE the drafter's figures are no numbers."""

    def start(self, requests: Sequence[str]) -> bool:
        if _now() == SLOW:
            time.sleep(SECONDS)
        return super().start(requests)

    def proceed(self, drafting: Drafting) -> bool:
        if _now() == NONFINITE:
            drafting.top[:, -1] = np.nan
        return super().proceed(drafting)


def install(folder: Path) -> None:
    """Makes the policy `soak` known, by entry point, to the servers that this process starts."""
    metadata = folder / "soak_policy-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: soak-policy\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[vllm_edsd.policies]\nsoak = soak_policy:FaultyEvict\n")
    (folder / "soak_policy.py").write_text(Path(__file__).read_text())
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ[FAULT] = str((folder / "fault").absolute())


@contextlib.contextmanager
def fault(name: str) -> Iterator[None]:
    """The servers' policies have this fault for so long."""
    place = Path(os.environ[FAULT])
    place.write_text(name)
    try:
        yield
    finally:
        place.unlink()


def _now() -> str:
    place = Path(os.environ[FAULT])
    return place.read_text() if place.exists() else ""
