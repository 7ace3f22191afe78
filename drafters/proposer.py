"""What drafts without a model: tokens in, tokens out. vLLM serves it as it is, on any target."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np


class Proposer(ABC):
    """Base of every model-free drafter; entry points in the group `vllm_edsd.proposers` name a class without arguments.

    One instance drafts for all requests of an engine, in one thread. It is told a request's whole text at every step but not
    which request it is, so that nothing can be kept by request. `tokens` is read-only, int32 [n] with n >= 1, prompt and
    answer so far; the memory is reused after the call. Whatever is drafted, the text stays the target's; a raised exception
    ends the engine.
    """

    @abstractmethod
    def propose(self, tokens: np.ndarray, most: int) -> Sequence[int]:
        """Up to `most` (>= 1) tokens to follow `tokens`; may be empty. Verified up to the first outside the vocabulary."""

    def observe(self, tokens: np.ndarray, new: int) -> None:  # noqa: B027 - not every proposer learns
        """The target has just written the last `new` (>= 1) of `tokens`; called before `propose` with the same text."""

    def chances(self, tokens: np.ndarray, drafted: Sequence[int]) -> Sequence[float] | np.ndarray:
        """How likely each of `drafted`, which `propose` made of the same text, is what the target writes, if those before it
        are; in (0, 1). Asked of one that drafts beside a drafter with weights: a first guess, which outcomes correct.
        """
        return [0.5] * len(drafted)
