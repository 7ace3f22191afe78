"""A model-free proposer behind vLLM's own `method: custom_class` (model runner V1)."""

from collections.abc import Sequence
from itertools import islice, takewhile
from typing import Any

import numpy as np

from vllm_edsd.drafters import registry


class CustomProposer:
    """Given as `speculative_config.model`; `additional_config["edsd"]["proposer"]` names the proposer it serves."""

    def __init__(self, vllm_config: Any):
        self.proposer = registry.load(vllm_config.additional_config["edsd"]["proposer"])()
        self.most = vllm_config.speculative_config.num_speculative_tokens
        self.vocabulary = vllm_config.model_config.get_vocab_size()

    def load_model(self, target: Any) -> None:
        """There is nothing to load; vLLM's CPU runner calls it."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: np.ndarray,
        token_ids_cpu: np.ndarray,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """One draft of at most K tokens for each request of the batch; an empty one while its prompt is being read.

        `sampled_token_ids`: what each request has just emitted. `token_ids_cpu` int32 [R, longest]: the texts, of which the
        first `num_tokens_no_spec` [R] tokens are valid.
        """
        return [
            self._draft(token_ids_cpu[row, : num_tokens_no_spec[row]], len(emitted)) if emitted else []
            for row, emitted in enumerate(sampled_token_ids)
        ]

    def _draft(self, tokens: np.ndarray, new: int) -> list[int]:
        tokens.flags.writeable = False  # of this view: vLLM's own buffer lies beneath
        self.proposer.observe(tokens, new)
        drafted = map(int, islice(self.proposer.propose(tokens, self.most), self.most))
        # The target would look up a row of its embedding that does not exist.
        return list(takewhile(lambda token: 0 <= token < self.vocabulary, drafted))
