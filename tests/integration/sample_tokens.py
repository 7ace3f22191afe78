"""Samples short answers with speculation and saves them: python sample_tokens.py TARGET DRAFTER OUT edsd|stock.

`edsd` speculates through `vllm_edsd.options`, `stock` through vLLM's own configuration alone.
"""

import os
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}

import torch
from safetensors.torch import save_file

COUNT, LENGTH, TEMPERATURE = 20_000, 3, 0.7
PROMPT = [5, 17, 99, 42, 64, 23]


def main(target: str, drafter: str, out: str, how: str) -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    import vllm_edsd

    speculative = {"speculative_config": {"method": "eagle3", "model": drafter, "num_speculative_tokens": 2}}
    llm = LLM(
        target,
        dtype="float32",
        max_model_len=64,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        enforce_eager=True,
        skip_tokenizer_init=True,
        seed=11,
        **(vllm_edsd.options(drafter, num_tokens=2) if how == "edsd" else speculative),
    )
    params = SamplingParams(temperature=TEMPERATURE, max_tokens=LENGTH, ignore_eos=True, detokenize=False)
    answers = llm.generate([TokensPrompt(prompt_token_ids=PROMPT)] * COUNT, params, use_tqdm=False)
    save_file({"answers": torch.tensor([answer.outputs[0].token_ids for answer in answers])}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
