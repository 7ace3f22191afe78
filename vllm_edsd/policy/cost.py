"""What a step costs, by what it does: fitted to the steps that the server really takes, old ones forgotten.

seconds = c . (1, requests, verified draft tokens, draft steps, draft steps * requests, context / 1000)   [ours]
"""

import dataclasses
import math
import operator

import numpy as np

from vllm_edsd.policy.base import Step

FORGET = 0.995  # of the evidence that stays from one step to the next
FIT = 8  # steps between two fits; the first FIT are fitted at once
PRIOR = 0.05  # weight of the starting coefficients, each in units of itself, against one step
OUTLIER = 4.0  # a step so many times dearer or cheaper than foreseen is left out (a paused process, a clock that jumps),
PATIENCE = 20  # unless so many come one after the other
# In plain steps of one request; only the ratios matter, since the first step sets the scale. A guess to start from: a 135M
# target on CPU and a drafter of 7% to 9% of its size.
GUESS = (0.96, 0.02, 0.02, 0.035, 0.008, 0.02)


@dataclasses.dataclass(frozen=True)
class Load:
    """What a step does; see `Step`. `drafts` are the draft tokens verified."""

    requests: int
    context: int
    drafts: int
    drafted: int

    def row(self) -> tuple[float, ...]:
        """What the coefficients are multiplied with."""
        requests, drafted = self.requests, self.drafted
        return 1.0, requests, self.drafts, drafted, drafted * requests, self.context / 1000


class CostModel:
    """Seconds of a step, relative errors minimised; marginal costs are never negative.

    Policies may share one: a step that both tell counts once.
    """

    def __init__(self, start: np.ndarray | None = None):
        self.scaled = start is not None
        self._begin(np.array(GUESS) if start is None else np.asarray(start, dtype=float))
        width = len(GUESS)
        self.evidence, self.target = np.zeros((width, width)), np.zeros(width)
        self.strange = 0
        self.latest: Step | None = None

    def _begin(self, start: np.ndarray) -> None:
        self.start = self.weights = start
        self.prices = start.tolist()
        self.trust = np.diag(PRIOR / np.maximum(start, 1e-9) ** 2)
        self.trusted = self.trust @ start
        self.fits = self.unfitted = 0

    def seconds(self, load: Load) -> float:
        """The expected wall clock of a step."""
        return sum(map(operator.mul, load.row(), self.prices))

    def learn(self, step: Step) -> None:
        """Takes in a step that was really made; those that cannot be true are left out."""
        if step is self.latest or not (math.isfinite(step.seconds) and step.seconds > 0):
            return
        self.latest = step
        load = Load(step.requests, step.context, step.tokens - step.requests, step.drafted)
        if not self.scaled:
            self._begin(self.start * (step.seconds / self.seconds(load)))
            self.scaled = True
        expected = self.seconds(load)
        if not expected / OUTLIER < step.seconds < expected * OUTLIER:
            self.strange += 1
            if self.strange < PATIENCE:
                return
            # The machine has changed: everything by as much, and the old evidence is void.
            self._begin(self.weights * (step.seconds / expected))
            self.evidence[:], self.target[:] = 0.0, 0.0
            expected = step.seconds
        self.strange = 0
        row = np.array(load.row()) / expected
        self.evidence = self.evidence * FORGET + row[:, None] * row
        self.target = self.target * FORGET + row * (step.seconds / expected)
        self.unfitted += 1
        if self.fits < FIT or self.unfitted == FIT:
            weights = np.linalg.solve(self.evidence + self.trust, self.target + self.trusted)
            self.weights = np.maximum(weights, 1e-3 * self.start)
            self.prices = self.weights.tolist()
            self.fits, self.unfitted = self.fits + 1, 0
