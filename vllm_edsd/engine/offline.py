"""vLLM offline: answers from the target, for regenerating training data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal


class OfflineTarget:
    """The target in vLLM, answering batches of token prompts; stops where the target ends its turn."""

    def __init__(
        self,
        model: Path,
        dtype: Literal["bfloat16", "float32"],
        max_model_len: int,
        max_tokens: int,
        seed: int,
        max_num_seqs: int = 160,
    ):
        from vllm import LLM

        self.max_tokens = max_tokens
        self.llm = LLM(
            model=str(model),
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            seed=seed,
            disable_log_stats=True,
        )
        self.tokenizer = self.llm.get_tokenizer()

    def render(self, messages: list[Any]) -> list[int]:
        """Chat messages to prompt tokens by the target's own template, generation prompt included."""
        tokens = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert isinstance(tokens, list)
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """Answer tokens to text, without special tokens."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def generate(self, prompts: list[list[int]], temperatures: Sequence[float]) -> list[list[int]]:
        """One answer for each prompt, the end-of-turn token included; no top-p, which is slow on CPU."""
        from vllm import SamplingParams, TokensPrompt

        params = [SamplingParams(temperature=heat, max_tokens=self.max_tokens) for heat in temperatures]
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], params, use_tqdm=True)
        return [list(output.outputs[0].token_ids) for output in outputs]
