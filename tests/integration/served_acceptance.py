"""What vLLM counts while it answers: python served_acceptance.py TARGET DRAFTER QUESTIONS.json OUT.

QUESTIONS holds `prompts` (token lists), `num_tokens`, `max_tokens`, `temperature` and `draft_sample_method`; float32.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}


def main(target: str, drafter: str, questions: str, out: str) -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    import vllm_edsd

    asked = json.loads(Path(questions).read_text())
    method = asked["draft_sample_method"]
    llm = LLM(
        target,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=4,
        kv_cache_memory_bytes=1 << 28,
        enforce_eager=True,
        disable_log_stats=False,
        **vllm_edsd.options(drafter, policy="fixed", num_tokens=asked["num_tokens"], draft_sample_method=method),
    )
    params = SamplingParams(temperature=asked["temperature"], max_tokens=asked["max_tokens"], seed=1)
    prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in asked["prompts"]]
    answers = [list(answer.outputs[0].token_ids) for answer in llm.generate(prompts, params, use_tqdm=False)]
    counts = {metric.name: getattr(metric, "value", None) or getattr(metric, "values", None) for metric in llm.get_metrics()}
    found = {name: value for name, value in counts.items() if name.startswith("vllm:spec_decode")}
    Path(out).write_text(json.dumps({"answers": answers, "counts": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
