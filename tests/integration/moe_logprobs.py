"""What vLLM thinks of a text, FOLDER/tokens.json: python moe_logprobs.py TARGET FOLDER DTYPE...

Writes the log probabilities of its tokens to FOLDER/DTYPE.json.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}


def main(target: str, folder: Path, *dtypes: str) -> None:
    tokens = json.loads((folder / "tokens.json").read_text())
    for dtype in dtypes:
        (folder / f"{dtype}.json").write_text(json.dumps(logprobs(target, dtype, tokens)))


def logprobs(target: str, dtype: str, tokens: list[int]) -> list[float]:
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(target, dtype=dtype, max_model_len=256, kv_cache_memory_bytes=1 << 27, enforce_eager=True)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    answer = llm.generate(TokensPrompt(prompt_token_ids=tokens), params, use_tqdm=False)[0]
    places = zip(tokens[1:], answer.prompt_logprobs[1:], strict=True)
    return [place[token].logprob for token, place in places]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
