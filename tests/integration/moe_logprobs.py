"""What vLLM thinks of a text: python moe_logprobs.py TARGET DTYPE TOKENS.json OUT.json, log probabilities of its tokens."""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}


def main(target: str, dtype: str, text: Path, out: Path) -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(target, dtype=dtype, max_model_len=256, kv_cache_memory_bytes=1 << 27, enforce_eager=True)
    tokens = json.loads(text.read_text())
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    answer = llm.generate(TokensPrompt(prompt_token_ids=tokens), params, use_tqdm=False)[0]
    places = zip(tokens[1:], answer.prompt_logprobs[1:], strict=True)
    out.write_text(json.dumps([place[token].logprob for token, place in places]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
