"""EVICT whose drafting can be made slow, so that the guard turns it off: the soak installs this as a package of its own."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from vllm_edsd.policy.evict import Evict

FAULT = "SOAK_FAULT"  # environment variable: while this file exists, every draft takes longer
SECONDS = 0.1


class SlowEvict(Evict):
    """Otherwise EVICT."""

    def start(self, requests: Sequence[str]) -> bool:
        if Path(os.environ[FAULT]).exists():
            time.sleep(SECONDS)
        return super().start(requests)


def install(folder: Path) -> None:
    """Makes the policy `soak` known, by entry point, to the servers that this process starts."""
    metadata = folder / "soak_policy-1.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: soak-policy\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[vllm_edsd.policies]\nsoak = soak_policy:SlowEvict\n")
    (folder / Path(__file__).name).write_text(Path(__file__).read_text())
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder.absolute()), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ[FAULT] = str((folder / "fault").absolute())


def fault() -> Path:
    """The file that makes drafting slow."""
    return Path(os.environ[FAULT])
