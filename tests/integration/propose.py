"""Greedy answers with model-free proposers, and with none: python propose.py TARGET OUT PROPOSER...

Each, "none" among them, has an engine and a file in OUT. The engine is made to do what could upset drafts of changing
length: prompts read in chunks, requests that come and go, one that grows to the longest text, a KV cache too small for all
of them (preemption), and prompts whose beginnings are cached.
"""

import json
import os
import random
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

K, LONGEST = 4, 192
LENGTHS = (3, 1, 40, 17, 90, 64, 33, 128)


def main(target: str, out: str, *proposers: str) -> None:
    for proposer in proposers:
        (Path(out) / f"{proposer}.json").write_text(json.dumps(answered(target, proposer)))


def answered(target: str, proposer: str) -> dict:
    """Answers of one engine, and its counters."""
    from vllm import LLM, SamplingParams, TokensPrompt

    import vllm_edsd

    llm = LLM(
        target,
        dtype="float32",
        max_model_len=LONGEST,
        max_num_seqs=4,
        max_num_batched_tokens=48,
        num_gpu_blocks_override=9,
        block_size=32,
        kv_cache_memory_bytes=1 << 28,
        enforce_eager=True,
        skip_tokenizer_init=True,
        disable_log_stats=False,
        **({} if proposer == "none" else vllm_edsd.options(proposer, num_tokens=K)),
    )
    words = random.Random(1)
    start = [words.randrange(2, 128) for _ in range(64)]
    prompts = [start[: length // 2] + [words.randrange(2, 128) for _ in range(length - length // 2)] for length in LENGTHS]
    asked = [24, LONGEST, 16, 60, LONGEST, 40, 30, LONGEST]
    params = [
        # With few tokens to choose from, texts repeat themselves.
        SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            allowed_token_ids=[*range(2, 8)] if number % 2 else None,
        )
        for number, tokens in enumerate(asked)
    ]
    given = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    answers = [list(answer.outputs[0].token_ids) for _ in range(3) for answer in llm.generate(given, params, use_tqdm=False)]
    counts = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return {"answers": answers, "counts": counts}


if __name__ == "__main__":
    main(*sys.argv[1:])
