"""What every step did and cost, written down as JSON lines."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from vllm_edsd.policy.base import DraftPolicy, Step, Wrapper


class Recorder(Wrapper):
    """Appends a line for each step that the policy is told of; lines are flushed as they are written."""

    def __init__(self, policy: DraftPolicy, path: Path):
        super().__init__(policy)
        self.file = path.open("a", buffering=1)

    def timed(self, step: Step) -> None:
        super().timed(step)
        self.file.write(json.dumps({**dataclasses.asdict(step), **self.policy.state()}) + "\n")


def steps(path: Path) -> Iterator[Step]:
    """The steps of a record."""
    names = [field.name for field in dataclasses.fields(Step)]
    with path.open() as lines:
        for line in lines:
            figures = json.loads(line)
            yield Step(**{name: figures[name] for name in names})
