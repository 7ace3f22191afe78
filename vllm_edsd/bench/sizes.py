"""How much a server needs for the prompts at hand: context length, KV cache, memory."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from transformers import AutoConfig, AutoTokenizer

from vllm_edsd.bench.arguments import DTYPES
from vllm_edsd.errors import UserError
from vllm_edsd.kv_cache import token_bytes
from vllm_edsd.prompts import Prompt

GIB = 1 << 30
# API server, engine core and worker of vLLM 0.32 on CPU, without weights and KV cache (measured: 2.5 GiB).
SERVER_BYTES = 5 * GIB // 2
BLOCK = 128


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Tokens of context, bytes of KV cache, and bytes of memory for one server."""

    max_model_len: int
    kv_cache_bytes: int
    server_bytes: int

    def arguments(self) -> list[str]:
        """As `vllm serve` takes them."""
        sized = ["--max-model-len", str(self.max_model_len), "--kv-cache-memory-bytes", str(self.kv_cache_bytes)]
        if torch.cuda.is_available():
            share = self.server_bytes / torch.cuda.mem_get_info()[1]
            sized += ["--gpu-memory-utilization", f"{min(0.95, share):.3f}"]
        return sized

    def fit(self, servers: int) -> bool:
        """Whether so many servers can be up at the same time."""
        free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
        return servers * self.server_bytes < free


def measure_sizes(target: Path, prompts: Sequence[Prompt], max_tokens: int, concurrency: int, dtype: str) -> Sizes:
    """What `concurrency` answers of `max_tokens` to the longest of `prompts` need.

    Raises UserError when a prompt and its answer do not fit into the target's context, or it has no chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(target)
    if not tokenizer.chat_template:
        raise UserError(f"target {target} has no chat template, which prompts are sent with; give an instruct model")
    chats = [prompt.messages() for prompt in prompts]
    lengths = [len(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)) for chat in chats]
    longest = max(range(len(prompts)), key=lengths.__getitem__)
    config = AutoConfig.from_pretrained(target).get_text_config()
    needed = lengths[longest] + max_tokens
    if needed > config.max_position_embeddings:
        raise UserError(
            f"prompt {prompts[longest].id!r} has {lengths[longest]} tokens, which with --max-tokens {max_tokens} do not fit "
            f"into the target's context of {config.max_position_embeddings}; lower --max-tokens or leave the prompt out"
        )
    length = min(config.max_position_embeddings, math.ceil(needed / BLOCK) * BLOCK)
    # One layer more for a drafter, one block more for what it drafts.
    per_token = token_bytes(config, config.num_hidden_layers + 1, DTYPES[dtype])
    kv_bytes = max(GIB // 8, per_token * (length + BLOCK) * (concurrency + 1))
    stored = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return Sizes(length, kv_bytes, SERVER_BYTES + stored * DTYPES[dtype] // 2 + kv_bytes)
