"""Whether a drafter that has just been loaded is accepted about as often as the one before it [ours]."""

import math
from collections.abc import Iterable

from vllm_edsd.observability.catalog import KEPT, ROLLED_BACK

FEWEST = 32  # drafts before anything is concluded
ENOUGH = 512  # drafts after which the means decide
SHARE = 0.9  # of the former drafter's accepted tokens per draft; less is a loss
CERTAINTY = 3.0  # standard errors, for a decision before ENOUGH


class Acceptance:
    """Mean and variance of the accepted tokens of a draft, the last `ENOUGH` drafts weighing most."""

    def __init__(self) -> None:
        self.drafts = 0
        self.mean = self.variance = 0.0

    def add(self, accepted: Iterable[int]) -> None:
        """Accepted tokens of each draft, 0 where all of it was cut or rejected."""
        for count in accepted:
            self.drafts += 1
            weight = 1 / min(self.drafts, ENOUGH)
            gap = count - self.mean
            self.mean += weight * gap
            self.variance = (1 - weight) * (self.variance + weight * gap * gap)

    def error(self) -> float:
        """The standard error of the mean."""
        return math.sqrt(self.variance / self.drafts) if self.drafts else math.inf


class Canary:
    """Compares a new drafter with the former one, whose acceptance is `before`, until it is kept or rolled back.

    Where the former made too few drafts to compare with, the new one is kept at once.
    """

    def __init__(self, before: Acceptance):
        self.before = before

    def verdict(self, now: Acceptance) -> str | None:
        """KEPT or ROLLED_BACK for the new drafter, accepted as `now` says; None while it is open."""
        if self.before.drafts < FEWEST:
            return KEPT
        if now.drafts < FEWEST:
            return None
        gain = now.mean - SHARE * self.before.mean
        error = math.hypot(now.error(), SHARE * self.before.error())
        if now.drafts < ENOUGH and abs(gain) < CERTAINTY * error:
            return None
        # What is not shown to be worse stays.
        return KEPT if gain >= -error else ROLLED_BACK
