"""Wall clock of whole steps, the engine's own work between two forward passes included."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vllm_edsd.engine.stops import Stops
from vllm_edsd.policy.base import Step


def decodes(output: Any) -> bool:
    """Whether a step reads no prompt; `output` is the scheduler's."""
    drafts = output.scheduled_spec_decode_tokens
    return not output.scheduled_new_reqs and all(
        count == 1 + len(drafts.get(request, ())) for request, count in output.num_scheduled_tokens.items()
    )


class StepClock:
    """A step lasts from its beginning to the next one's, if the next has a request of its own: then nothing idled between.

    One in which the process was stopped is not told, nor one that reads a prompt; `decoding` says whether the step that runs
    now reads none.
    """

    def __init__(self, stops: Stops, now: Callable[[], float] = time.perf_counter):
        self.stops = stops
        self.stopped = 0
        self.now = now
        self.begun = 0.0
        self.requests: Collection[str] = ()
        self.tokens = 0
        self.decoding = False
        self.result: tuple[int, int, int] | None = None

    def begin(self, counts: Mapping[str, int], decoding: bool) -> Step | None:
        """A step with so many tokens for each request begins; returns the one before it if it is worth telling."""
        now, before = self.now(), None
        whole, self.stopped = self.stops.count == self.stopped, self.stops.count
        if whole and self.decoding and self.result is not None and any(request in counts for request in self.requests):
            context, drafted, emitted = self.result
            before = Step(len(self.requests), context, self.tokens, drafted, emitted, now - self.begun)
        self.begun, self.requests, self.tokens = now, tuple(counts), sum(counts.values())
        self.decoding, self.result = decoding and bool(counts), None
        return before

    def drafted(self, context: int, drafted: int, emitted: int) -> None:
        """The step made so many draft steps and emitted so many tokens."""
        self.result = (context, drafted, emitted)
