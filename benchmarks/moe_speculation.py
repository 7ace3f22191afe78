"""Experts per emitted token of a speculating MoE target: python benchmarks/moe_speculation.py TARGET DRAFTER PROMPTS OUT.

Plain decoding, a fixed draft length and EVICT, one request at a time, greedy; a plan that cuts nothing counts the experts.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

PROMPTS = 16
TOKENS = 96
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fixed:8": {"policy": "fixed", "num_tokens": 8},
    "fixed:3": {"policy": "fixed", "num_tokens": 3},
    "evict": {"policy": "evict", "num_tokens": 8},
}


def main(target: str, drafter: str, prompts: str, out: str) -> None:
    from whole_plan import write_whole

    from vllm_edsd.training.export import environment

    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "whole"
        write_whole(Path(target), plan)
        arms = {name: measure(target, drafter, Path(prompts), plan, options) for name, options in ARMS.items()}
    command = " ".join(["python", *sys.argv])
    Path(out).write_text(
        json.dumps({**environment(), "command": command, "drafter": drafter, "arms": arms}, indent=2) + "\n"
    )
    for name, figures in arms.items():
        print(name, json.dumps(figures))


def measure(target: str, drafter: str, prompts: Path, plan: Path, options: dict[str, Any]) -> dict[str, float]:
    """Means over the emitted tokens of all prompts: tokens a step, draft length, distinct experts of a layer."""
    from vllm import LLM, SamplingParams

    import vllm_edsd
    from vllm_edsd.prompts import read_prompts

    settings = vllm_edsd.options(drafter if options else None, target, experts=str(plan), experts_mode="all", **options)
    llm = LLM(
        target,
        dtype="bfloat16",
        max_model_len=1024,
        max_num_seqs=1,
        kv_cache_memory_bytes=1 << 28,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=False,
        **settings,
    )
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    sums = [0.0] * 3  # distinct experts, experts of tokens, steps, all of the steps after the prompt
    emitted = 0
    for prompt in read_prompts(prompts, PROMPTS):
        messages: Any = prompt.messages()
        before = counted(llm)
        llm.chat(messages, params, use_tqdm=False)
        after = counted(llm)
        once = prompt_pass(llm, messages)
        sums = [total + b - a - p for total, a, b, p in zip(sums, before, after, once, strict=True)]
        emitted += TOKENS - 1
    found = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    drafts = found.get("vllm:spec_decode_num_drafts", 0)
    layers = len(worker(llm).usage.read())
    return {
        "tokens_per_step": emitted / (sums[2] / layers),
        "draft_length": found.get("vllm:spec_decode_num_draft_tokens", 0) / drafts if drafts else 0.0,
        "distinct_experts_per_emitted_token_and_layer": sums[0] / layers / emitted,
        "expert_visits_per_emitted_token_and_layer": sums[1] / layers / emitted,
    }


def worker(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def counted(llm: Any) -> list[float]:
    """Sums over the layers so far: distinct experts, experts of tokens, steps."""
    rows = worker(llm).usage.read().values()
    return [sum(row[place] for row in rows) for place in (4, 2, 5)]


def prompt_pass(llm: Any, messages: Any) -> list[float]:
    """What reading the prompt and writing its first token counts."""
    from vllm import SamplingParams

    before = counted(llm)
    llm.chat(messages, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    return [b - a for a, b in zip(before, counted(llm), strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:])
