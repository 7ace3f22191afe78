"""What random MoE targets say in vLLM, plain and with a drafter: python moe_targets.py FOLDER FAMILY...

With FOLDER/FAMILY's `target` and `drafter` it starts three engines in float32, greedy: vLLM's class, ours, and ours with
the drafter. Writes what each answers, and the states that the drafter was given, to FOLDER/FAMILY/said.
"""

import inspect
import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
# For a model this small several threads mostly wait for each other.
os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

import torch

K = 3
# Few tokens to choose from: some drafts of a random drafter are accepted.
TOKENS = range(2, 8)
WORDS = torch.Generator().manual_seed(5)
PROMPTS = [torch.randint(2, 128, (length,), generator=WORDS).tolist() for length in (40, 3, 17, 90)]


def main(folder: Path, *families: str) -> None:
    import vllm_edsd

    for family in families:
        target, drafter = str(folder / family / "target"), str(folder / family / "drafter")
        ours = {"hf_overrides": {"architectures": [f"Edsd{family}ForCausalLM"]}}
        drafting = vllm_edsd.options(drafter, target, num_tokens=K, policy="fixed")
        said = {name: answers(target, given) for name, given in (("stock", {}), ("ours", ours), ("drafting", drafting))}
        (folder / family / "said").write_text(json.dumps({"prompt": PROMPTS[0], **said}))


def answers(target: str, options: dict) -> dict:
    """The answers of one engine, with the log probabilities of the five likeliest tokens where it does not speculate."""
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(
        target,
        dtype="float32",
        max_model_len=192,
        max_num_seqs=3,
        max_num_batched_tokens=64,
        kv_cache_memory_bytes=1 << 26,
        enforce_eager=True,
        skip_tokenizer_init=True,
        disable_log_stats=False,
        **options,
    )
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    speculates = "speculative_config" in options
    states = keep_states(runner.drafter) if speculates else {}
    params = SamplingParams(
        temperature=0,
        max_tokens=24,
        ignore_eos=True,
        detokenize=False,
        allowed_token_ids=[*TOKENS],
        logprobs=None if speculates else 5,
    )
    # The first alone: states are kept by position.
    said = llm.generate(TokensPrompt(prompt_token_ids=PROMPTS[0]), params, use_tqdm=False)
    first = [states[place] for place in sorted(states)]
    said += llm.generate([TokensPrompt(prompt_token_ids=prompt) for prompt in PROMPTS[1:]], params, use_tqdm=False)
    counts = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return {
        "module": type(runner.get_model()).__module__,
        "answers": [list(answer.outputs[0].token_ids) for answer in said],
        "logprobs": [
            [{token: value.logprob for token, value in place.items()} for place in answer.outputs[0].logprobs or []]
            for answer in said
        ],
        "states": first,
        "drafted": counts.get("vllm:spec_decode_num_draft_tokens", 0),
        "accepted": counts.get("vllm:spec_decode_num_accepted_tokens", 0),
    }


def keep_states(proposer) -> dict[int, list[float]]:
    """What the drafter is given, by position in the text; filled as the engine runs."""
    states, propose = {}, proposer.propose

    def keep(*args, **kwargs):
        given = inspect.signature(propose).bind(*args, **kwargs).arguments
        states.update(zip(given["target_positions"].tolist(), given["target_hidden_states"].tolist(), strict=True))
        return propose(*args, **kwargs)

    proposer.propose = keep
    return states


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
