"""A carved MoE as a Hugging Face checkpoint of architecture Qwen2-MoE.

The family that a plain Llama fits exactly: q/k/v biases are zero; `norm_topk_prob` is false, so with near-uniform routing
each of E experts gets about 1/E and its down-projection is E times the dense one; the shared expert's gate is
sigmoid(0) = 1/2, so its down-projection is twice the dense one.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from vllm_edsd.experts.delta import Delta

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


def assemble(dense: Any, delta: Delta) -> Any:
    """The MoE, a Qwen2MoeForCausalLM in bf16, of a LlamaForCausalLM, which is not changed."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = dense.config
    experts, width = delta.routers.shape[1], delta.order.shape[1]
    moe: Any = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=width,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            hidden_act=config.hidden_act,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters=config.rope_parameters,
            tie_word_embeddings=config.tie_word_embeddings,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            num_experts=experts,
            num_experts_per_tok=delta.top_k,
            moe_intermediate_size=(width - delta.shared) // experts,
            shared_expert_intermediate_size=delta.shared,
            norm_topk_prob=False,
            decoder_sparse_step=1,
            mlp_only_layers=[],
        )
    )
    moe = moe.to(torch.bfloat16)
    moe.generation_config = dense.generation_config
    kept = {name: tensor for name, tensor in dense.state_dict().items() if ".mlp." not in name}
    biases = {name: torch.zeros_like(tensor) for name, tensor in moe.state_dict().items() if name.endswith("_proj.bias")}
    moe.load_state_dict({**moe.state_dict(), **kept, **biases})
    with torch.no_grad():
        for place, (target, source) in enumerate(zip(moe.model.layers, dense.model.layers, strict=True)):
            _fill(target.mlp, source.mlp, delta, place)
    return moe


def _fill(block, mlp, delta: Delta, layer: int) -> None:
    experts, shared = delta.routers.shape[1], delta.shared
    gate, up, down = (
        delta.merged(name, layer, getattr(mlp, name).weight.detach()) for name in ("gate_proj", "up_proj", "down_proj")
    )
    block.gate.weight.copy_(delta.routers[layer])
    block.shared_expert_gate.weight.zero_()
    block.shared_expert.gate_proj.weight.copy_(gate[:shared])
    block.shared_expert.up_proj.weight.copy_(up[:shared])
    block.shared_expert.down_proj.weight.copy_(2 * down[:, :shared])
    routed = [matrix[shared:].unflatten(0, (experts, -1)) for matrix in (gate, up)]
    block.experts.gate_up_proj.copy_(torch.cat(routed, dim=1))
    block.experts.down_proj.copy_(experts * down[:, shared:].unflatten(1, (experts, -1)).transpose(0, 1))


def copy_tokenizer(dense: Path, out: Path) -> None:
    """The dense target's tokenizer and chat template are the MoE's too."""
    for name in TOKENIZER:
        if (dense / name).is_file():
            shutil.copy(dense / name, out / name)
