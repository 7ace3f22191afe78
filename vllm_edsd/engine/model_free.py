"""A model-free proposer over the texts of vLLM's V1 model runner."""

from itertools import islice, takewhile
from typing import Any

import numpy as np

from vllm_edsd.drafters import registry


class ModelFree:
    """Drafts of at most `num_speculative_tokens` tokens, none outside the target's vocabulary."""

    def __init__(self, name: str, vllm_config: Any):
        self.proposer = registry.load(name)()
        self.most = vllm_config.speculative_config.num_speculative_tokens
        self.vocabulary = vllm_config.model_config.get_vocab_size()

    def draft(self, tokens: np.ndarray, new: int) -> list[int]:
        """What may follow a request's text, int32 [n], whose last `new` tokens the target has just written."""
        tokens.flags.writeable = False  # of this view: vLLM's own buffer lies beneath
        self.proposer.observe(tokens, new)
        drafted = map(int, islice(self.proposer.propose(tokens, self.most), self.most))
        # The target would look up a row of its embedding that does not exist.
        return list(takewhile(lambda token: 0 <= token < self.vocabulary, drafted))

    def chances(self, tokens: np.ndarray, drafted: list[int]) -> list[float]:
        """How likely each of `drafted`, just made of `tokens`, is what the target writes."""
        return [float(chance) for chance in self.proposer.chances(tokens, drafted)] if drafted else []
