"""Never slower than plain decoding: the guard measures both ways of decoding as it goes and takes the faster one [ours]."""

import math
from collections.abc import Sequence

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, Step, Verdict

TRIAL = 6  # steps of the other way at a time
FIRST = 24  # steps before the first trial, and the least between two
SHARE = 0.005  # of the time may be lost to trials
LONGEST_STEP = 60.0  # seconds; no clock that jumps, and no paused process, is believed
LONGEST = 4096  # at most so many steps between two trials
SMOOTHING = 0.05  # least weight of the newest step
MARGIN = 0.01  # the ways change places only for more than this, relative


class Guard(DraftPolicy):
    """Wraps a policy. For each power of two of the batch size it keeps tokens per second of both ways, and tries the slower
    one the more rarely the slower it is."""

    def __init__(self, policy: DraftPolicy):
        super().__init__(policy.max_tokens)
        self.policy = policy
        self.sizes: dict[int, _Size] = {}
        self.now = _Size()

    def start(self, requests: Sequence[str]) -> bool:
        self.now = self.sizes.setdefault(len(requests).bit_length(), _Size())
        return self.now.next() and self.policy.start(requests)

    def proceed(self, drafting: Drafting) -> bool:
        return self.policy.proceed(drafting)

    def cut(self, drafting: Drafting) -> np.ndarray:
        return self.policy.cut(drafting)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        self.policy.observe(verdicts)

    def timed(self, step: Step) -> None:
        self.policy.timed(step)
        self.now.learn(step)

    def forget(self, requests: Sequence[str]) -> None:
        self.policy.forget(requests)

    def state(self) -> dict[str, float]:
        return {"guard_drafts": float(self.now.drafts), **self.policy.state()}


class _Size:
    """One batch size: which way is used, and what either gave."""

    def __init__(self) -> None:
        self.drafts = True
        self.ways = {True: _Way(), False: _Way()}
        self.current = self.before = True
        self.until_trial = FIRST
        self.trial = 0
        self.judging = False

    def next(self) -> bool:
        """Whether the next step drafts."""
        if self.judging and not self.trial:
            self._judge()
        if self.until_trial == 0 and not self.trial:
            self.trial, self.judging = TRIAL, True
        self.before = self.current
        if self.trial:
            self.trial -= 1
            self.current = not self.drafts
        else:
            self.until_trial -= 1
            self.current = self.drafts
        return self.current

    def learn(self, step: Step) -> None:
        # Where the way has just changed, the step verified what the other had drafted, or drafted for the first time.
        if self.current == self.before and 0 < step.seconds < LONGEST_STEP and step.emitted:
            self.ways[self.current].add(step)

    def _judge(self) -> None:
        self.judging = False
        mine, other = self.ways[self.drafts].seconds_per_token(), self.ways[not self.drafts].seconds_per_token()
        if other < mine * (1 - MARGIN):
            self.drafts = not self.drafts
            mine, other = other, mine
        lost = TRIAL * (other / mine - 1) if mine and math.isfinite(other) else 0.0
        self.until_trial = int(min(max(lost / SHARE, FIRST), LONGEST))


class _Way:
    def __init__(self) -> None:
        self.steps = 0
        self.seconds = self.emitted = 0.0

    def add(self, step: Step) -> None:
        self.steps += 1
        weight = max(SMOOTHING, 1 / self.steps)
        self.seconds += weight * (step.seconds - self.seconds)
        self.emitted += weight * (step.emitted - self.emitted)

    def seconds_per_token(self) -> float:
        return self.seconds / self.emitted if self.steps else math.inf
