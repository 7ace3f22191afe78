"""What a random MoE target says with fewer experts in vLLM: python fewer_experts.py FOLDER WAY...

FOLDER has `target`, the plans `half` and `whole`, and `drafter`. A way names an engine's settings, mode and more, joined
by "+"; each starts one engine, float32, greedy, and writes FOLDER/said-WAY.json.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
# For a model this small several threads mostly wait for each other.
os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

import torch

WORDS = torch.Generator().manual_seed(5)
PROMPTS = [torch.randint(2, 128, (length,), generator=WORDS).tolist() for length in (40, 3, 17, 150, 33, 64)]
TOKENS = 24
ENGINE = {
    "max_model_len": 320,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,  # the longest prompts are read in chunks, beside others that decode
    "kv_cache_memory_bytes": 1 << 26,
    "block_size": 32,
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "skip_tokenizer_init": True,
}


def main(folder: Path, *ways: str) -> None:
    for way in ways:
        (folder / f"said-{way}.json").write_text(json.dumps(answers(folder, set(way.split("+")))))


def answers(folder: Path, way: set[str]) -> dict:
    """Answers to PROMPTS with log probabilities of the likeliest tokens, then to each again with its answer and more."""
    from vllm import LLM, SamplingParams, TokensPrompt

    import vllm_edsd
    from vllm_edsd.engine import cache_salt

    engine = dict(ENGINE)
    if not way & {"stock"}:
        mode = "all" if "all" in way else "prefill"
        plan = folder / ("whole" if "whole" in way else "half")
        drafter = str(folder / "drafter") if "drafting" in way else None
        target = str(folder / "target")
        engine |= vllm_edsd.options(drafter, target, experts=str(plan), experts_mode=mode)
    if "cached" in way:
        engine["enable_prefix_caching"] = True
    if "unsalted" in way:
        cache_salt.keys = lambda *_: []
    if "tight" in way:
        # 7 blocks and the empty one: the longest request fits alone, beside any other one of the two is preempted.
        engine |= {"max_model_len": 224, "num_gpu_blocks_override": 8}
    if "compiled" in way:
        engine["enforce_eager"] = False
    dtype = "bfloat16" if "bfloat16" in way else "float32"
    size = 2 if "two" in way else 1
    llm = LLM(str(folder / "target"), dtype=dtype, tensor_parallel_size=size, disable_log_stats=False, **engine)
    count = None if "drafting" in way else 1
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, logprobs=count)

    def ask(prompts: list[list[int]]) -> list:
        return llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], params, use_tqdm=False)

    said = ask(PROMPTS)
    tokens = [list(answer.outputs[0].token_ids) for answer in said]
    again = ask([[*prompt, *answer, 7, 8, 9] for prompt, answer in zip(PROMPTS, tokens, strict=True)])
    counts = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    usage = llm.collective_rpc("expert_usage") if "stock" not in way else [None]
    return {
        "answers": tokens,
        "logprobs": [_logprobs(answer) for answer in said],
        "again": [list(answer.outputs[0].token_ids) for answer in again],
        "again_logprobs": [_logprobs(answer) for answer in again],
        "usage": usage[0],
        "ranks": len([rank for rank in usage if rank == usage[0]]),
        "preemptions": counts.get("vllm:num_preemptions", 0),
        "hits": counts.get("vllm:prefix_cache_hits", 0),
        "drafted": counts.get("vllm:spec_decode_num_draft_tokens", 0),
    }


def _logprobs(answer) -> list[float]:
    places = answer.outputs[0].logprobs or []
    return [place[token].logprob for token, place in zip(answer.outputs[0].token_ids, places, strict=False)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
