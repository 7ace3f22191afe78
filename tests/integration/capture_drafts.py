"""Runs one prompt through vLLM in this process and saves what the drafter said: python capture_drafts.py TARGET FOLDER...

With FOLDER/drafter, in float32, greedy; writes to FOLDER/said the tokens, the target's captured states and, for every
step, the position it drafts from, its drafts and their logits.
"""

import inspect
import json
import os
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

import torch
from safetensors.torch import save_file

STEPS = 4


def main(target: str, *folders: str) -> None:
    for folder in folders:
        capture(target, f"{folder}/drafter", f"{folder}/said")


def capture(target: str, drafter: str, out: str) -> None:
    from vllm import LLM

    speculative = {"method": "eagle3", "model": drafter, "num_speculative_tokens": STEPS}
    llm = LLM(
        target,
        dtype="float32",
        max_model_len=256,
        enforce_eager=True,
        skip_tokenizer_init=True,
        kv_cache_memory_bytes=1 << 26,
        max_num_batched_tokens=256,
        speculative_config=speculative,
    )
    proposer = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.drafter
    logits, drafts, starts, features = [], [], [], {}
    compute, propose = proposer.model.compute_logits, proposer.propose

    def keep_logits(hidden):
        logits.append(compute(hidden).clone())
        return logits[-1]

    def keep_drafts(*args, **kwargs):
        given = inspect.signature(propose).bind(*args, **kwargs).arguments
        last = given.get("token_indices_to_sample")
        last = given["common_attn_metadata"].query_start_loc[1:] - 1 if last is None else last
        starts.append(given["target_positions"][last].clone())
        features.update(zip(given["target_positions"].tolist(), given["target_hidden_states"].clone(), strict=True))
        drafts.append(propose(*args, **kwargs).clone())
        return drafts[-1]

    proposer.model.compute_logits, proposer.propose = keep_logits, keep_drafts
    ask(llm, out, proposer.model, logits=logits, drafts=drafts, starts=starts, features=features)


def ask(llm, out, model, *, logits, drafts, starts, features) -> None:
    """Has one answer made and saves it with what was noted meanwhile."""
    from vllm import SamplingParams, TokensPrompt

    prompt = torch.randint(2, 128, (100,), generator=torch.Generator().manual_seed(5)).tolist()
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
    (answer,) = llm.generate(TokensPrompt(prompt_token_ids=prompt), params)
    save_file(
        {
            "prompt": torch.tensor(prompt),
            "answer": torch.tensor(answer.outputs[0].token_ids),
            "starts": torch.cat(starts),
            "features": torch.stack([features[position] for position in sorted(features)]),
            "drafts": torch.cat(drafts),
            "logits": torch.cat(logits).unflatten(0, (-1, STEPS)),
        },
        out,
        metadata={"model": json.dumps(type(model).__name__)},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
