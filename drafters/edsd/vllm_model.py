"""EDSD's drafter as vLLM serves it: `method: "eagle3"`, `architectures: ["Eagle3EdsdModel"]`.

Same weights and names as `drafters/edsd/core.py`. vLLM's V1 runner wants an `Eagle3LlamaForCausalLM`, so this is one.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.llama import LlamaDecoderLayer
from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.utils import AutoWeightsLoader, get_draft_quant_config, maybe_prefix


def _draft_config(vllm_config: VllmConfig):
    assert vllm_config.speculative_config is not None
    return vllm_config.speculative_config.draft_model_config.hf_config


class EDFuse(nn.Module):
    """The gated token-level fusion, split over tensor-parallel ranks by its width."""

    def __init__(self, config, quant_config, prefix: str):
        super().__init__()
        width, hidden = config.intermediate_size, config.hidden_size
        options = {"bias": False, "quant_config": quant_config, "return_bias": False}
        self.state_proj = ColumnParallelLinear(hidden, width, prefix=f"{prefix}.state_proj", **options)
        self.token_proj = ColumnParallelLinear(hidden, width, prefix=f"{prefix}.token_proj", **options)
        self.down_proj = RowParallelLinear(width, hidden, prefix=f"{prefix}.down_proj", **options)

    def forward(self, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.state_proj(state)) * self.token_proj(token))


class EdsdDecoderLayer(LlamaDecoderLayer):
    """Llama's layer behind the fusion; q, k and v take H as they do there."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, config):
        super().__init__(vllm_config, prefix=prefix, config=config)
        self.hidden_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.fusion = EDFuse(config, self.get_quant_config(vllm_config), prefix=maybe_prefix(prefix, "fusion"))

    def get_quant_config(self, vllm_config: VllmConfig):
        return get_draft_quant_config(vllm_config)

    def forward(  # type: ignore[override]
        self, positions: torch.Tensor, embeds: torch.Tensor, hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fused = self.fusion(hidden_states, self.input_layernorm(embeds))
        attended = self.self_attn(positions=positions, hidden_states=self.hidden_norm(fused))
        normed, residual = self.post_attention_layernorm(attended, fused)
        return self.mlp(normed), residual


@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": -1, "hidden_states": 0, "input_embeds": 0},
)
class EdsdModel(nn.Module):
    """One EDSD layer over the target's captured states; attribute names are those that `Eagle3LlamaForCausalLM` reads."""

    use_aux_hidden_state = True
    norm_before_fc = False
    hf_to_vllm_mapper = LlamaModel.hf_to_vllm_mapper

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", start_layer_id: int = 0):
        super().__init__()
        self.config = _draft_config(vllm_config)
        hidden = self.config.hidden_size
        self.num_aux_hidden_states = len(self.config.eagle_aux_hidden_state_layer_ids)
        self.embed_tokens = VocabParallelEmbedding(
            self.config.vocab_size, hidden, prefix=maybe_prefix(prefix, "embed_tokens")
        )
        # The layer's number continues the target's, which keeps the KV caches of the two apart.
        layer = EdsdDecoderLayer(get_current_vllm_config(), maybe_prefix(prefix, f"layers.{start_layer_id}"), self.config)
        self.layers = nn.ModuleList([layer])
        self.fc = ReplicatedLinear(
            self.num_aux_hidden_states * self.config.target_hidden_size,
            hidden,
            bias=False,
            params_dtype=vllm_config.model_config.dtype,  # type: ignore[arg-type]  # resolved by now
            quant_config=get_draft_quant_config(vllm_config),
            prefix=maybe_prefix(prefix, "fc"),
            return_bias=False,
        )
        # Both as vLLM's EAGLE-3 has them (EAGLE-3.1's norms).
        self.fc_norm = None
        if getattr(self.config, "fc_norm", False):
            norms = (
                RMSNorm(self.config.target_hidden_size, eps=self.config.rms_norm_eps)
                for _ in range(self.num_aux_hidden_states)
            )
            self.fc_norm = nn.ModuleList(norms)
        self.norm_output = getattr(self.config, "norm_output", False)
        self.norm = RMSNorm(hidden, eps=self.config.rms_norm_eps)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        input_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[N] tokens and [N, H] states to (normed states for the head, states for the next draft step), both [N, H]."""
        if input_embeds is None:
            input_embeds = self.embed_input_ids(input_ids)
        hidden_states, residual = self.layers[0](positions, input_embeds, hidden_states)
        normed, state = self.norm(hidden_states, residual)
        return normed, normed if self.norm_output else state

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)


class Eagle3EdsdModel(Eagle3LlamaForCausalLM):
    """The name starts with Eagle3 because vLLM expects it of `method: "eagle3"`."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        nn.Module.__init__(self)
        config = self.config = _draft_config(vllm_config)
        layers = vllm_config.model_config.get_total_num_hidden_layers()
        config.target_layer_count = layers
        self.model = EdsdModel(  # type: ignore[assignment]
            vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"), start_layer_id=layers
        )
        self.lm_head = ParallelLMHead(
            config.draft_vocab_size,
            config.hidden_size,
            quant_config=get_draft_quant_config(vllm_config),
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        self.logits_processor = LogitsProcessor(config.draft_vocab_size)
        self.draft_id_to_target_id: nn.Parameter | None = None  # type: ignore[assignment]
        if config.draft_vocab_size != vllm_config.model_config.get_vocab_size():
            offsets = torch.zeros(config.draft_vocab_size, dtype=torch.long)
            self.draft_id_to_target_id = nn.Parameter(offsets, requires_grad=False)
        self.use_parallel_drafting = False
