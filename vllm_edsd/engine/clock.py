"""Wall clock of whole steps, the engine's own work between two forward passes included."""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vllm_edsd.policy.base import Step

JUMP = 8.0  # a step so many times as long as each of the last RECENT ones met a pause; a second one so soon after did not
RECENT = 8


def decodes(output: Any) -> bool:
    """Whether a step reads no prompt; `output` is the scheduler's."""
    drafts = output.scheduled_spec_decode_tokens
    return not output.scheduled_new_reqs and all(
        count == 1 + len(drafts.get(request, ())) for request, count in output.num_scheduled_tokens.items()
    )


class StepClock:
    """A step lasts from its beginning to the next one's, if the next has a request of its own: then nothing idled between.

    One in which the process was paused is not told (a machine or container that was frozen, SIGSTOP).
    `decoding` says whether the step now running reads no prompt; those that do are not told.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now = now
        self.begun = 0.0
        self.requests: Collection[str] = ()
        self.tokens = 0
        self.decoding = False
        self.result: tuple[int, int, int] | None = None
        self.recent: deque[float] = deque(maxlen=RECENT)  # seconds of steps

    def begin(self, counts: Mapping[str, int], decoding: bool) -> Step | None:
        """A step with so many tokens for each request begins; returns the one before it if it is worth telling."""
        now, before = self.now(), None
        if self.decoding and self.result is not None and any(request in counts for request in self.requests):
            context, drafted, emitted = self.result
            seconds = now - self.begun
            if not self.recent or seconds < JUMP * max(self.recent):
                before = Step(len(self.requests), context, self.tokens, drafted, emitted, seconds)
            self.recent.append(seconds)
        self.begun, self.requests, self.tokens = now, tuple(counts), sum(counts.values())
        self.decoding, self.result = decoding and bool(counts), None
        return before

    def drafted(self, context: int, drafted: int, emitted: int) -> None:
        """The step made so many draft steps and emitted so many tokens."""
        self.result = (context, drafted, emitted)
