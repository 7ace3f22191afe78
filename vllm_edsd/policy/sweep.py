"""Every draft length in turn: what `vllm-edsd profile` serves with, so that steps of all kinds are measured."""

from collections.abc import Sequence

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, leading

HOLD = 3  # steps with one choice: the first still verifies what the choice before it drafted


class Sweep(DraftPolicy):
    """Goes through all pairs of tokens drafted and tokens verified, over and over."""

    def __init__(self, max_tokens: int):
        super().__init__(max_tokens)
        self.choices = [(drafted, kept) for drafted in range(max_tokens + 1) for kept in range(drafted, -1, -2)]
        self.step = 0

    def start(self, requests: Sequence[str]) -> bool:
        # Neighbours in time should differ, or a slow minute would be put down to the lengths it met.
        place = (self.step // HOLD * 7) % len(self.choices)
        self.drafted, self.kept = self.choices[place]
        self.step += 1
        return self.drafted > 0

    def proceed(self, drafting: Drafting) -> bool:
        return drafting.drafted < self.drafted

    def cut(self, drafting: Drafting) -> np.ndarray:
        return np.minimum(leading(drafting.usable()), self.kept)
