"""What a policy decides and what became of it, counted."""

from collections.abc import Sequence

import numpy as np

from vllm_edsd.observability.catalog import GUARD, NONFINITE, POLICY, REASONS
from vllm_edsd.observability.tally import Tally
from vllm_edsd.policy.base import Drafting, DraftPolicy, Wrapper
from vllm_edsd.policy.contest import Contests
from vllm_edsd.policy.guard import Guard

# Figures of `DraftPolicy.state()` that are counters, and the gauge.
TOTALS = {
    "judged": "edsd:judged_tokens",
    "estimated": "edsd:estimated_acceptances",
    "accepted": "edsd:observed_acceptances",
}
CALIBRATION = "calibration_error"


class Watch(Wrapper):
    """Stands around a policy, its guard included; `refresh` sets what is read off them now and then."""

    def __init__(self, policy: DraftPolicy, tally: Tally):
        super().__init__(policy)
        self.tally = tally
        self.told = dict.fromkeys(TOTALS, 0.0)  # a drafter that is rolled back comes with its former policy: nothing twice
        self.guard = _guard(policy)
        for reason in REASONS:
            tally.count("edsd:fallbacks", 0, reason)
        for name in ("edsd:drafted_tokens", "edsd:cut_tokens"):
            tally.count(name, 0)
        tally.observe("edsd:drafter_entropy_nats", ())

    def start(self, requests: Sequence[str]) -> bool:
        drafts = super().start(requests)
        if not drafts:
            self.tally.count("edsd:fallbacks", 1, GUARD if self.guard and not self.guard.now.current else POLICY)
        return drafts

    def cut(self, drafting: Drafting) -> np.ndarray:
        kept = super().cut(drafting)
        entropy = drafting.entropy
        self.tally.count("edsd:drafted_tokens", entropy.size)
        self.tally.count("edsd:cut_tokens", entropy.size - int(kept.sum()))
        if not np.isfinite(drafting.top + entropy).all():
            usable = drafting.usable()
            self.tally.count("edsd:fallbacks", int((~usable).any(axis=1).sum()), NONFINITE)
            entropy = entropy[usable]
        self.tally.observe("edsd:drafter_entropy_nats", entropy)
        return kept

    def refresh(self) -> None:
        """Called from another thread: reads numbers, changes nothing."""
        state = self.policy.state()
        self.tally.put("edsd:tracked_requests", state.get("tracked_requests", 0.0), "policy")
        for name, metric in TOTALS.items():
            if name in state:
                self.tally.count(metric, state[name] - self.told[name])
                self.told[name] = state[name]
        if CALIBRATION in state:
            self.tally.put("edsd:calibration_error_ratio", state[CALIBRATION])
        if self.guard is not None:
            show_contests(self.tally, self.guard.contests)


def show_contests(tally: Tally, contests: Contests) -> None:
    """Exports for each batch size whether drafting is the faster way, and how fast either is; called as `refresh` is."""
    for size, held in list(contests.sizes.items()):
        requests = batch(size)
        tally.put("edsd:guard_drafts", float(held.drafts), requests)
        for way, tokens_per_second in held.speeds().items():
            tally.put("edsd:guard_tokens_per_second", tokens_per_second, requests, way)


def _guard(policy: DraftPolicy) -> Guard | None:
    while isinstance(policy, Wrapper) and not isinstance(policy, Guard):
        policy = policy.policy
    return policy if isinstance(policy, Guard) else None


def batch(size: int) -> str:
    """The numbers of requests of `size` binary digits: "1", "2-3", "4-7", ..."""
    least, most = 1 << (size - 1), (1 << size) - 1
    return str(least) if least == most else f"{least}-{most}"
