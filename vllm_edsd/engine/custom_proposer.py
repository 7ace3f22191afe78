"""A model-free proposer behind vLLM's own `method: custom_class` (model runner V1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vllm_edsd.engine.model_free import ModelFree


class CustomProposer:
    """Given as `speculative_config.model`; `additional_config["edsd"]["proposer"]` names the proposer it serves."""

    def __init__(self, vllm_config: Any):
        self.free = ModelFree(vllm_config.additional_config["edsd"]["proposer"], vllm_config)

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
            self.free.draft(token_ids_cpu[row, : num_tokens_no_spec[row]], len(emitted)) if emitted else []
            for row, emitted in enumerate(sampled_token_ids)
        ]
