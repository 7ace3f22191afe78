"""The same draft length at every step: what vLLM does by itself."""

from collections.abc import Sequence

import numpy as np

from vllm_edsd.policy.base import Drafting, DraftPolicy, leading


class Fixed(DraftPolicy):
    """Drafts and verifies `max_tokens` tokens."""

    def start(self, requests: Sequence[str]) -> bool:
        return True

    def proceed(self, drafting: Drafting) -> bool:
        return True

    def cut(self, drafting: Drafting) -> np.ndarray:
        return leading(drafting.usable())
