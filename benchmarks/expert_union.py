"""How far EVICT drafts as a step's experts spread: python benchmarks/expert_union.py OUT.

Random Qwen3-MoE targets that differ in nothing but the number of experts to choose from, so that a token costs the same and
only the union of a step's experts grows faster. Each is served with every draft length in turn, one request at a time; the
cost model is fitted to its steps, and EVICT chooses by it at given chances of acceptance. Acceptance itself is not measured:
the targets and the drafter are random.
"""

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

import torch

EXPERTS = (4, 8, 16, 32, 64)
TOP_K = 4
SHAPE = {
    "hidden_size": 512,
    "initializer_range": 0.2,
    "intermediate_size": 512,
    "moe_intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 1024,
    "num_experts_per_tok": TOP_K,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
LONGEST = 8
CHANCES = (0.5, 0.7, 0.9)
PROMPTS = 12
TOKENS = 150
FLAT = 1e-3  # scale of the heads: every token is about as likely as any other, so that texts and drafts vary


def main(out: Path) -> None:
    from vllm_edsd.training.export import environment

    rows = []
    for experts in EXPERTS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(experts, Path(folder)))
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "cells"}), flush=True)
    command = " ".join(["python", *sys.argv])
    out.write_text(json.dumps({**environment(), "command": command, "shape": SHAPE, "rows": rows}, indent=1) + "\n")


def measure(experts: int, folder: Path) -> dict[str, Any]:
    """What a step of one request costs and how many experts of a layer it uses, by the draft tokens it verifies."""
    from vllm import LLM, SamplingParams, TokensPrompt

    import vllm_edsd
    from vllm_edsd.policy.profile import CostProfile
    from vllm_edsd.policy.record import steps

    make(experts, folder)
    record = folder / "steps.jsonl"
    options: dict[str, Any] = {
        "policy": "sweep",
        "draft_sample_method": "probabilistic",
        "num_tokens": LONGEST,
        "record": record,
    }
    target = str(folder / "target")
    settings = vllm_edsd.options(str(folder / "drafter"), target, experts=folder / "whole", experts_mode="all", **options)
    llm = LLM(
        target,
        dtype="bfloat16",
        max_model_len=512,
        max_num_seqs=1,
        kv_cache_memory_bytes=1 << 26,
        enforce_eager=True,
        skip_tokenizer_init=True,
        **settings,
    )
    usage = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.usage
    union: dict[int, list[float]] = {}
    count = usage.count

    def counted(layer: int, before: torch.Tensor, after: Any) -> None:
        union.setdefault(len(before), []).append(float(len(before.unique())))
        count(layer, before, after)

    usage.count = counted
    words = torch.Generator().manual_seed(1)
    prompts = [
        TokensPrompt(prompt_token_ids=torch.randint(2, 1024, (32,), generator=words).tolist()) for _ in range(PROMPTS)
    ]
    params = SamplingParams(temperature=1, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    llm.generate(prompts[:1], params, use_tqdm=False)
    record.write_text("")  # the first answer warms up
    union.clear()
    llm.generate(prompts, params, use_tqdm=False)
    profile = CostProfile.fit(list(steps(record)), {})
    seconds = {
        verified: statistics.median(cell.ms for cell in profile.cells if cell.drafts == verified and cell.drafted == LONGEST)
        for verified in range(0, LONGEST + 1, 2)
    }
    return {
        "experts": experts,
        "union": {tokens - 1: statistics.mean(found) for tokens, found in sorted(union.items()) if tokens <= LONGEST + 1},
        "ms_drafting_8_verifying": seconds,
        "verified_token_over_plain_step": profile.coefficients[2] / (profile.coefficients[0] + profile.coefficients[1]),
        "chosen": {chance: chosen(profile.coefficients, chance) for chance in CHANCES},
        "fit_error": profile.error,
        "cells": [cell.model_dump() for cell in profile.cells],
    }


def make(experts: int, folder: Path) -> None:
    """The target, a plan that cuts nothing and so only counts experts, and a random EAGLE-3 drafter."""
    import transformers
    from whole_plan import write_whole

    from vllm_edsd.drafters import factory
    from vllm_edsd.drafters.config import DrafterConfig
    from vllm_edsd.training.export import export

    torch.manual_seed(0)
    config = transformers.Qwen3MoeConfig(num_experts=experts, **SHAPE)
    model = transformers.Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    model.lm_head.weight.data.mul_(FLAT)
    model.save_pretrained(folder / "target")
    write_whole(folder / "target", folder / "whole")
    drafter = DrafterConfig.of_target(config, "random", "eagle3", (1, 2, 3), SHAPE["vocab_size"])
    weights = factory.build(drafter, torch.arange(SHAPE["vocab_size"])).state_dict()
    weights["lm_head.weight"] *= FLAT
    export(drafter, weights, folder / "drafter", {})


def chosen(coefficients: list[float], chance: float) -> int:
    """The length at which one request's expected tokens per second are most, where every token is accepted at `chance`."""
    from vllm_edsd.policy.cost import CostModel, Load

    cost = CostModel(torch.tensor(coefficients).double().numpy())
    lengths = range(LONGEST + 1)
    emitted = [sum(chance**place for place in range(length + 1)) for length in lengths]
    rates = [emitted[length] / cost.seconds(Load(1, 200, length, length)) for length in lengths]
    return rates.index(max(rates))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
