"""Stop where the drafter is unsure: AdaEDL's bound (arXiv 2410.18351) on the chance of acceptance from entropy alone."""

from collections.abc import Sequence

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, leading

GAMMA = 0.2  # of the bound 1 - sqrt(GAMMA * H), as the paper has it
LEAST = 0.4  # a token whose bound is below this is not verified [ours]


class Entropy(DraftPolicy):
    """Keeps a request's tokens up to the first whose acceptance bound 1 - sqrt(0.2 H) is below 0.4."""

    def start(self, requests: Sequence[str]) -> bool:
        return True

    def proceed(self, drafting: Drafting) -> bool:
        return bool((self.cut(drafting) == drafting.drafted).any())

    def cut(self, drafting: Drafting) -> np.ndarray:
        bound = 1 - np.sqrt(GAMMA * np.maximum(np.nan_to_num(drafting.entropy), 0))
        return leading(drafting.usable() & (bound >= LEAST))
