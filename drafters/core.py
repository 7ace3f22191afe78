"""The base of one-layer drafters that read the target's hidden states (EAGLE-3 and its kin), as a trainable torch module.

Weights are named as published EAGLE-3 checkpoints name them, so that what is exported is what vLLM loads.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn

from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.drafters.layers import Attention, DraftCache, GatedMLP, RMSNorm


class DraftLayer(nn.Module, ABC):
    """One decoder layer; a subclass says how the token's embedding and the state before it become the layer's input."""

    attention_inputs: int  # how many times H wide the attention's input is

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)  # of the token's embedding
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, self.attention_inputs * config.hidden_size)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    @abstractmethod
    def fuse(self, state: torch.Tensor, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """State and token embedding [..., H] to (residual [..., H], attention input [..., attention_inputs * H])."""

    def forward(
        self,
        state: torch.Tensor,
        embedding: torch.Tensor,
        positions: torch.Tensor,
        cache: DraftCache,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        """[B, L, H] to the chains' next states [B, Lq, H]; see `Attention.forward`."""
        residual, attention_input = self.fuse(state, embedding)
        attended = self.self_attn(attention_input, positions, cache, visible)
        middle = residual[:, -visible.shape[1] :] + attended
        return middle + self.mlp(self.post_attention_layernorm(middle))


class Drafter(nn.Module):
    """fc over the captured target layers, one layer, a norm and a head over the draft vocabulary.

    `draft_ids` int64 [V_draft], ascending: the target id of each row of the head. The target's embedding is frozen, shared
    with the target when served, and no part of the checkpoint.
    """

    t2d: torch.Tensor
    d2t: torch.Tensor

    def __init__(self, config: DrafterConfig, layer: DraftLayer, draft_ids: torch.Tensor):
        super().__init__()
        self.config = config
        self.fc = nn.Linear(len(config.layers) * config.hidden_size, config.hidden_size, bias=False)
        self.midlayer = layer
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        known = torch.zeros(config.vocab_size, dtype=torch.bool)
        known[draft_ids] = True
        self.register_buffer("t2d", known)
        # Offsets, not ids: target id = draft id + d2t[draft id].
        self.register_buffer("d2t", draft_ids - torch.arange(config.draft_vocab_size))

    @property
    def draft_ids(self) -> torch.Tensor:
        """Target ids of the head's rows, int64 [V_draft]."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def first(
        self,
        features: torch.Tensor,
        embedding: torch.Tensor,
        positions: torch.Tensor,
        cache: DraftCache,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        """Step 0: captured states [B, L, layers * H] and the next tokens' embeddings [B, L, H] to states [B, Lq, H]."""
        return self.midlayer(self.combine(features), embedding, positions, cache, visible)

    def combine(self, features: torch.Tensor) -> torch.Tensor:
        """Captured states [..., layers * H] to the layer's first state [..., H]."""
        return self.fc(features)

    def next(
        self,
        state: torch.Tensor,
        embedding: torch.Tensor,
        positions: torch.Tensor,
        cache: DraftCache,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        """A later step: the chains' own states and the embeddings of the tokens drafted, both [B, Lq, H], to [B, Lq, H]."""
        return self.midlayer(state, embedding, positions, cache, visible)

    def logits(self, state: torch.Tensor) -> torch.Tensor:
        """[..., H] to logits over the draft vocabulary [..., V_draft]."""
        return self.lm_head(self.norm(state))
