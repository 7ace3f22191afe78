"""Drafts made without a model, verified in place of the drafter's where that emits more tokens per second [ours].

SAM Decoding (arXiv 2411.10666) turns to its auxiliary drafter where the match of the text is shorter than a threshold. Here
the chances of both are learnt and priced, so that the same rule holds for any proposer, drafter, load and machine.
"""

from collections.abc import Sequence

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, Step, Verdict, Wrapper, leading
from vllm_edsd.policy.cost import CostModel, Load
from vllm_edsd.policy.estimate import AcceptanceEstimator, Survival
from vllm_edsd.policy.evict import budget
from vllm_edsd.policy.pace import Pace

COLD, ENOUGH = 2, 8  # steps of the policy's own that do not count, and that must before anything takes their place


class Beside(Wrapper):
    """Stands around a policy with its guard: a step drafts without a model for the whole batch, or as the policy says.

    What the policy's own steps emit per second is measured for each power of two of the batch size. The policy hears nothing
    of steps that verified or made drafts of the other kind.
    """

    def __init__(self, policy: DraftPolicy, cost: CostModel):
        super().__init__(policy)
        self.cost = cost
        self.estimator = AcceptanceEstimator()
        self.paces: dict[int, Pace] = {}
        self.offered: Survival | None = None  # what this step verifies of drafts without a model
        self.changed = False  # the last step drafted the other way

    def beside(self, requests: Sequence[str], chances: Sequence[Sequence[float]], context: int) -> np.ndarray | None:
        before, self.offered, counts = self.offered, None, None
        pace = self.paces.setdefault(len(requests).bit_length(), Pace(COLD))
        if any(map(len, chances)) and pace.steps >= ENOUGH:
            offered = self._survival(requests, chances, context)
            least, rate = budget(offered.update(), Load(len(requests), context, 0, 0), self.cost)
            # Decoding plainly is the guard's to choose: there must be something to verify.
            if least <= 1 and rate * pace.seconds_per_token() > 1:
                self.offered, counts = offered, leading(offered.values >= least)
        self.changed = (before is None) != (self.offered is None)
        return counts

    def _survival(self, requests: Sequence[str], chances: Sequence[Sequence[float]], context: int) -> Survival:
        top = np.full((len(requests), max(map(len, chances))), np.nan)  # beyond a draft's end nothing can be verified
        for row, known in zip(top, chances, strict=True):
            row[: len(known)] = known
        return Survival(self.estimator, Drafting(requests, top, np.zeros_like(top), context))

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        if self.offered is None:
            super().observe(verdicts)
        else:
            self.offered.learn(verdicts)

    def timed(self, step: Step) -> None:
        self.cost.learn(step)
        if self.offered is None and not self.changed:
            self.paces.setdefault(step.requests.bit_length(), Pace(COLD)).add(step)
            super().timed(step)

    def forget(self, requests: Sequence[str]) -> None:
        super().forget(requests)
        self.estimator.forget(requests)

    def state(self) -> dict[str, float]:
        inner, own = super().state(), self.estimator.state()
        tracked = inner.get("tracked_requests", 0.0) + own["tracked_requests"]
        beside = {f"beside_{name}": own[name] for name in ("judged", "estimated", "accepted")}
        return {**inner, "tracked_requests": tracked, **beside}
