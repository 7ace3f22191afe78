"""EAGLE-3's drafter (arXiv 2503.01840): the token's embedding and the state before it, normed and concatenated."""

import torch

from vllm_edsd.drafters.core import DraftLayer


class Eagle3Layer(DraftLayer):
    attention_inputs = 2

    def fuse(self, state: torch.Tensor, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return state, torch.cat([self.input_layernorm(embedding), self.hidden_norm(state)], dim=-1)
