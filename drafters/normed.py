"""EAGLE-3.1's norms: an RMSNorm on each captured state before fc, and the normed state fed back to the next step.

Both keep what one step adds to the state from growing over the draft ("attention drift", arXiv 2605.09992). Around
EAGLE-3's layer vLLM's stock class serves them, around EDSD's [ours] `edsd/vllm_model.py`: `fc_norm` and `norm_output` in
config.json.
"""

import torch
from torch import nn

from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.drafters.core import Drafter, DraftLayer
from vllm_edsd.drafters.layers import DraftCache, RMSNorm


class NormedDrafter(Drafter):
    def __init__(self, config: DrafterConfig, layer: DraftLayer, draft_ids: torch.Tensor):
        super().__init__(config, layer, draft_ids)
        self.fc_norm = nn.ModuleList(RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in config.layers)

    def combine(self, features: torch.Tensor) -> torch.Tensor:
        parts = features.chunk(len(self.fc_norm), dim=-1)
        return self.fc(torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1))

    def next(
        self,
        state: torch.Tensor,
        embedding: torch.Tensor,
        positions: torch.Tensor,
        cache: DraftCache,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        return super().next(self.norm(state), embedding, positions, cache, visible)
