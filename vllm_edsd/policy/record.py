"""What every step did and cost, written down as JSON lines."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, Step, Verdict


class Recorder(DraftPolicy):
    """Wraps a policy and appends a line for each step that it is told of; lines are flushed as they are written."""

    def __init__(self, policy: DraftPolicy, path: Path):
        super().__init__(policy.max_tokens)
        self.policy = policy
        self.file = path.open("a", buffering=1)

    def start(self, requests: Sequence[str]) -> bool:
        return self.policy.start(requests)

    def proceed(self, drafting: Drafting) -> bool:
        return self.policy.proceed(drafting)

    def cut(self, drafting: Drafting) -> np.ndarray:
        return self.policy.cut(drafting)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        self.policy.observe(verdicts)

    def timed(self, step: Step) -> None:
        self.policy.timed(step)
        self.file.write(json.dumps({**dataclasses.asdict(step), **self.policy.state()}) + "\n")

    def forget(self, requests: Sequence[str]) -> None:
        self.policy.forget(requests)

    def state(self) -> dict[str, float]:
        return self.policy.state()


def steps(path: Path) -> Iterator[Step]:
    """The steps of a record."""
    names = [field.name for field in dataclasses.fields(Step)]
    with path.open() as lines:
        for line in lines:
            figures = json.loads(line)
            yield Step(**{name: figures[name] for name in names})
