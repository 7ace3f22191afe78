"""GammaTune+ (arXiv 2504.00030): a smoothed accepted length sets each request's draft length, low confidence ends it."""

from collections.abc import Sequence

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, Verdict, leading

SMOOTHING = 0.3  # weight of the newest accepted length
UNSURE = 0.3  # a token drafted with a lower top probability is not verified [ours; the paper's is a parameter]


class GammaTune(DraftPolicy):
    """Drafts one token more than a request lately had accepted."""

    def __init__(self, max_tokens: int):
        super().__init__(max_tokens)
        self.accepted: dict[str, float] = {}

    def _wanted(self, requests: Sequence[str]) -> np.ndarray:
        lately = np.array([self.accepted.get(request, self.max_tokens / 2) for request in requests])
        return np.clip(np.rint(lately + 1), 1, self.max_tokens)

    def start(self, requests: Sequence[str]) -> bool:
        return True

    def proceed(self, drafting: Drafting) -> bool:
        return bool(((self.cut(drafting) == drafting.drafted) & (self._wanted(drafting.requests) > drafting.drafted)).any())

    def cut(self, drafting: Drafting) -> np.ndarray:
        sure = leading(drafting.usable() & (np.nan_to_num(drafting.top) >= UNSURE))
        return np.minimum(sure, self._wanted(drafting.requests)).astype(int)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            if verdict.verified:
                # All accepted: more might have been.
                reached = verdict.accepted + (verdict.accepted == verdict.verified)
                before = self.accepted.get(verdict.request, self.max_tokens / 2)
                self.accepted[verdict.request] = before + SMOOTHING * (reached - before)

    def forget(self, requests: Sequence[str]) -> None:
        for request in requests:
            self.accepted.pop(request, None)

    def state(self) -> dict[str, float]:
        return {"tracked_requests": float(len(self.accepted))}
