"""EDSD's drafter: two target layers and a gated fusion (EDFuse), after "EDArch" (ACL 2026; our reading of the paper).

z = W_down(SiLU(W_gate x) * W_up RMSNorm(e))        no skip from x: the token carries the signal, the state gates it
u = z + Attn(RMSNorm(z))
x' = u + MLP(RMSNorm(u))
"""

import torch
from torch import nn
from torch.nn import functional as F

from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.drafters.core import DraftLayer


class EDFuse(nn.Module):
    """The gated token-level fusion; width = intermediate_size."""

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.state_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.token_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """State and normed token embedding, both [..., H], to [..., H]."""
        return self.down_proj(F.silu(self.state_proj(state)) * self.token_proj(token))


class EdsdLayer(DraftLayer):
    attention_inputs = 1

    def __init__(self, config: DrafterConfig):
        super().__init__(config)
        self.fusion = EDFuse(config)

    def fuse(self, state: torch.Tensor, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fused = self.fusion(state, self.input_layernorm(embedding))
        return fused, self.hidden_norm(fused)
