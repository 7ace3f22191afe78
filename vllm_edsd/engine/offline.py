"""vLLM offline: answers from the target, for regenerating training data."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vllm_edsd.kv_cache import token_bytes
from vllm_edsd.training.self_prompts import user_turn

SEQUENCES = 160  # answered at a time: on CPU more brings nothing


class OfflineTarget:
    """The target in vLLM, answering batches of token prompts; stops where the target ends its turn."""

    def __init__(self, model: Path, dtype: Literal["bfloat16", "float32"], max_model_len: int, max_tokens: int, seed: int):
        from vllm_edsd.engine.serve import is_cpu

        if is_cpu():
            # In a process of its own the engine core keeps a whole CPU core busy waiting.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        self.max_tokens = max_tokens
        self.llm = LLM(
            model=str(model),
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=SEQUENCES,
            seed=seed,
            disable_log_stats=True,
            kv_cache_memory_bytes=_cache_bytes(model, dtype, max_model_len) if is_cpu() else None,
        )
        self.tokenizer = self.llm.get_tokenizer()

    def render(self, messages: list[Any]) -> list[int]:
        """Chat messages to prompt tokens by the target's own template, generation prompt included."""
        tokens = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert isinstance(tokens, list)
        return tokens

    def user_turn(self) -> list[int]:
        """The tokens of a chat up to where the user's first turn begins."""
        return user_turn(self.tokenizer)

    def decode(self, tokens: list[int]) -> str:
        """Answer tokens to text, without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def generate(self, prompts: list[list[int]], temperatures: Sequence[float]) -> list[list[int]]:
        """One answer for each prompt, the end-of-turn token included; no top-p, which is slow on CPU."""
        from vllm import SamplingParams, TokensPrompt

        params = [SamplingParams(temperature=heat, max_tokens=self.max_tokens) for heat in temperatures]
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], params, use_tqdm=True)
        return [list(output.outputs[0].token_ids) for output in outputs]


def _cache_bytes(model: Path, dtype: str, max_model_len: int) -> int:
    """KV cache for every sequence at full length: vLLM's default share of a machine's memory may not be free."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model).get_text_config()
    return token_bytes(config, config.num_hidden_layers, 4 if dtype == "float32" else 2) * max_model_len * SEQUENCES
