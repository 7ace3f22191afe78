"""Never slower than plain decoding: the guard measures both ways of decoding as it goes and takes the faster one [ours]."""

from collections.abc import Sequence

from vllm_edsd.policy.base import DraftPolicy, Step, Wrapper
from vllm_edsd.policy.contest import Contest, Contests


class Guard(Wrapper):
    """Stands around a policy; for each power of two of the batch size a contest decides whether it may draft."""

    def __init__(self, policy: DraftPolicy):
        super().__init__(policy)
        self.contests = Contests()
        self.now = Contest(True)
        self.reading = (0.0, 0.0)

    def reads(self, later: float, now: float) -> None:
        super().reads(later, now)
        self.reading = later, now

    def start(self, requests: Sequence[str]) -> bool:
        self.now = self.contests.of(len(requests), super().promise)
        return self.now.next(*self.reading) and super().start(requests)

    def timed(self, step: Step) -> None:
        super().timed(step)
        if not self.now.changed:
            self.now.learn(self.now.current, step)

    def state(self) -> dict[str, float]:
        return {"guard_drafts": float(self.now.drafts), **super().state()}
