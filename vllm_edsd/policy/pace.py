"""How fast a way of decoding has been lately."""

from vllm_edsd.policy.base import Step

SPEED, LENGTH = 0.05, 0.02  # least weight of the newest step in what a step costs, and in what it emits
LONGEST_STEP = 60.0  # seconds; no clock that jumps, and no paused process, is believed


class Pace:
    """Running means of a step's seconds and tokens; the first `cold` steps do not count: caches fill."""

    def __init__(self, cold: int) -> None:
        self.steps = -cold
        self.seconds = self.emitted = 0.0

    def add(self, step: Step) -> bool:
        """Takes in a step; tells whether it can be true, else it is left out."""
        if not (0 < step.seconds < LONGEST_STEP and step.emitted):
            return False
        self.steps += 1
        if self.steps > 0:
            self.seconds += max(SPEED, 1 / self.steps) * (step.seconds - self.seconds)
            self.emitted += max(LENGTH, 1 / self.steps) * (step.emitted - self.emitted)
        return True

    def seconds_per_token(self) -> float:
        return self.seconds / self.emitted
