"""What the steps that are served take on the device, without waiting for it."""

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from vllm.v1.worker.gpu.async_utils import StepTimingCollector

from vllm_edsd.engine.stops import Stops


@dataclasses.dataclass(frozen=True)
class Taken:
    """One step that only decoded: `tokens` of `requests` requests, and `emitted` tokens came of it.

    `milliseconds` from its beginning to the next step's, of which `drafting` after the target was done.
    """

    requests: int
    tokens: int
    emitted: int
    milliseconds: float
    drafting: float


@dataclasses.dataclass
class _Mark:
    """One step in flight."""

    ids: frozenset[str]
    decoding: bool
    tag: Any = None
    tokens: int = 0
    stops: int = 0
    begun: torch.cuda.Event | None = None
    verified: torch.cuda.Event | None = None
    done: torch.cuda.Event | None = None
    emitted: torch.Tensor | None = None


class StepTimes(StepTimingCollector):
    """In the place of vLLM's, which only times dummy steps while it profiles.

    For each step `begin`, then vLLM's own calls, `drafting` and `drafted`.
    """

    def __init__(self, stops: Stops) -> None:
        super().__init__()
        self.stops = stops
        self.mark: _Mark | None = None
        self.flying: deque[_Mark] = deque()

    def begin(self, ids: frozenset[str], decoding: bool) -> None:
        """A step with these requests is about to run; `decoding` says that it reads no prompt."""
        self.mark = _Mark(ids, decoding)

    def forward_start(self) -> None:
        super().forward_start()
        if self.mark is not None:
            self.mark.tokens, self.mark.stops, self.mark.begun = self._batch[1], self.stops.count, _now()
            self.flying.append(self.mark)

    def drafting(self, emitted: torch.Tensor, tag: Any) -> None:
        """The target is done and the drafter begins; `emitted` int [R], on the device. `tag` comes back with the figures."""
        if self.mark is not None:
            self.mark.verified, self.mark.tag = _now(), tag
            self.mark.emitted = emitted.sum().to("cpu", non_blocking=True)

    def drafted(self) -> None:
        """The drafter is done."""
        if self.mark is not None:
            self.mark.done = _now()
        self.mark = None

    def finished(self) -> Iterator[tuple[Any, Taken]]:
        """Tags and figures of steps that are over since the last call, the oldest first."""
        while len(self.flying) > 1:
            step, following = self.flying[0], self.flying[1]
            assert step.begun is not None and following.begun is not None
            if not following.begun.query():
                return
            self.flying.popleft()
            # Without a request in common the engine may have idled in between.
            if step.done is None or not step.decoding or step.ids.isdisjoint(following.ids):
                continue
            if step.stops != following.stops:
                continue
            assert step.verified is not None and step.emitted is not None
            yield (
                step.tag,
                Taken(
                    len(step.ids),
                    step.tokens,
                    int(step.emitted),
                    step.begun.elapsed_time(following.begun),
                    step.verified.elapsed_time(step.done),
                ),
            )


def _now() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
