"""SpecDec++ (arXiv 2405.19715): stop once the chance that some drafted token is rejected passes a threshold."""

from collections.abc import Sequence

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, Verdict, leading
from vllm_edsd.policy.estimate import AcceptanceEstimator

LARGEST_RISK = 0.7  # the paper's threshold


class SpecDec(DraftPolicy):
    """The chance comes from the online estimate instead of the paper's trained head."""

    def __init__(self, max_tokens: int):
        super().__init__(max_tokens)
        self.estimator = AcceptanceEstimator()
        self.last: tuple[Drafting, np.ndarray] | None = None

    def start(self, requests: Sequence[str]) -> bool:
        self.last = None
        return True

    def _survival(self, drafting: Drafting) -> np.ndarray:
        features = self.estimator.features(drafting.requests, drafting.top, drafting.entropy)
        self.last = (drafting, features)
        return np.cumprod(self.estimator.chances(features) * drafting.usable(), axis=1)

    def proceed(self, drafting: Drafting) -> bool:
        return bool((1 - self._survival(drafting)[:, -1] <= LARGEST_RISK).any())

    def cut(self, drafting: Drafting) -> np.ndarray:
        return leading(1 - self._survival(drafting) <= LARGEST_RISK)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        if self.last is not None:
            learn(self.estimator, *self.last, verdicts)

    def forget(self, requests: Sequence[str]) -> None:
        self.estimator.forget(requests)

    def state(self) -> dict[str, float]:
        return {"calibration_error": self.estimator.calibration_error()}


def learn(estimator: AcceptanceEstimator, drafting: Drafting, features: np.ndarray, verdicts: Sequence[Verdict]) -> None:
    """Gives the estimator the verdicts on the draft whose features these are; requests may have left meanwhile."""
    row = {request: place for place, request in enumerate(drafting.requests)}
    known = [verdict for verdict in verdicts if verdict.request in row]
    if known:
        estimator.learn(
            [verdict.request for verdict in known],
            features[[row[verdict.request] for verdict in known]],
            np.array([verdict.verified for verdict in known]),
            np.array([verdict.accepted for verdict in known]),
        )
