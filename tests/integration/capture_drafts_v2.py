"""As capture_drafts.py, with model runner V2: python capture_drafts_v2.py TARGET FOLDER..."""

import inspect
import sys

import torch
import v2
from capture_drafts import STEPS, ask


def main(target: str, *folders: str) -> None:
    for folder in folders:
        capture(target, f"{folder}/drafter", f"{folder}/said-v2")


def capture(target: str, drafter: str, out: str) -> None:
    llm, worker = v2.engine(
        target,
        drafter,
        num_tokens=STEPS,
        speculative={"use_local_argmax_reduction": False},
        dtype="float32",
        max_model_len=256,
        kv_cache_memory_bytes=1 << 26,
        max_num_batched_tokens=256,
    )
    speculator = worker.model_runner.speculator
    logits, drafts, starts, features = [], [], [], {}
    compute, propose = speculator.model.compute_logits, speculator.propose

    def keep_logits(hidden):
        logits.append(compute(hidden).clone())
        return logits[-1]

    def keep_drafts(*args, **kwargs):
        given = inspect.signature(propose).bind(*args, **kwargs).arguments
        positions = given["input_batch"].positions
        features.update(zip(positions.tolist(), torch.cat(given["aux_hidden_states"], dim=-1).clone(), strict=True))
        drafts.append(propose(*args, **kwargs).clone())
        starts.append(positions[speculator.last_token_indices[:1]].clone())
        return drafts[-1]

    speculator.model.compute_logits, speculator.propose = keep_logits, keep_drafts
    ask(llm, out, speculator.model, logits=logits, drafts=drafts, starts=starts, features=features)


if __name__ == "__main__":
    main(*sys.argv[1:])
