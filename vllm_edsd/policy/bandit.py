"""TLT's bandit (arXiv 2511.16665): which fixed draft length is fastest at this batch size, learnt by trying."""

import random
from collections import defaultdict, deque
from collections.abc import Sequence
from statistics import median

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, Step, leading

LENGTHS = (0, 1, 2, 3, 5, 8)
HOLD = 8  # steps with one length before it is judged
EXPLORE = 0.1  # share of the choices made at random
WINDOW = 16  # judgements remembered for each length


class Bandit(DraftPolicy):
    """Epsilon-greedy over draft lengths, one bandit for each power of two of the batch size; length 0 is plain decoding."""

    def __init__(self, max_tokens: int):
        super().__init__(max_tokens)
        self.lengths = [length for length in LENGTHS if length <= max_tokens]
        self.seen: dict[tuple[int, int], deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))
        self.random = random.Random(0)
        self.length = self.lengths[-1]
        self.bucket = 0
        self.held: list[Step] = []

    def start(self, requests: Sequence[str]) -> bool:
        bucket = len(requests).bit_length()
        if len(self.held) >= HOLD or bucket != self.bucket:
            if len(self.held) >= HOLD:
                # The first step still verified what the length before it had drafted.
                rest = self.held[1:]
                seconds = sum(step.seconds for step in rest)
                if seconds > 0:
                    self.seen[self.bucket, self.length].append(sum(step.emitted for step in rest) / seconds)
            self.bucket, self.held = bucket, []
            self.length = self._choose()
        return self.length > 0

    def _choose(self) -> int:
        untried = [length for length in self.lengths if not self.seen[self.bucket, length]]
        if untried:
            return untried[0]
        if self.random.random() < EXPLORE:
            return self.random.choice(self.lengths)
        return max(self.lengths, key=lambda length: median(self.seen[self.bucket, length]))

    def proceed(self, drafting: Drafting) -> bool:
        return drafting.drafted < self.length

    def cut(self, drafting: Drafting) -> np.ndarray:
        return leading(drafting.usable())

    def timed(self, step: Step) -> None:
        self.held.append(step)

    def state(self) -> dict[str, float]:
        return {"length": float(self.length)}
