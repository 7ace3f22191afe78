"""SpecDec++ (arXiv 2405.19715): stop once the chance that some drafted token is rejected passes a threshold."""

from collections.abc import Sequence

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, Verdict, leading
from vllm_edsd.policy.estimate import AcceptanceEstimator, Survival

LARGEST_RISK = 0.7  # the paper's threshold


class SpecDec(DraftPolicy):
    """The chance comes from the online estimate instead of the paper's trained head."""

    def __init__(self, max_tokens: int):
        super().__init__(max_tokens)
        self.estimator = AcceptanceEstimator()
        self.last: Survival | None = None

    def start(self, requests: Sequence[str]) -> bool:
        self.last = None
        return True

    def _survival(self, drafting: Drafting) -> np.ndarray:
        if self.last is None or self.last.drafting is not drafting:
            self.last = Survival(self.estimator, drafting)
        return self.last.update()

    def proceed(self, drafting: Drafting) -> bool:
        return bool((1 - self._survival(drafting)[:, -1] <= LARGEST_RISK).any())

    def cut(self, drafting: Drafting) -> np.ndarray:
        return leading(1 - self._survival(drafting) <= LARGEST_RISK)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        if self.last is not None:
            self.last.learn(verdicts)

    def forget(self, requests: Sequence[str]) -> None:
        self.estimator.forget(requests)

    def state(self) -> dict[str, float]:
        return self.estimator.state()
