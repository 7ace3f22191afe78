"""Samples short answers with speculation and saves them: python sample_tokens.py TARGET DRAFTER OUT HOW=COUNT...

Each HOW gets a file in OUT. Neighbours with the same options share an engine; `stock` must be the first, since `options`
mends what it is there to show:

edsd, stock         through `vllm_edsd.options`, and through vLLM's own configuration alone
standard, block     sampled drafts, cut at lengths thrown with a die; verified token by token, and as a block; among the
                    former are drafts of a model-free proposer, at steps thrown with the same die
greedy              the same with likeliest drafts, as a block
own, own-block      sampled drafts, cut where a token's own probability is low, which no policy can do
grammar             even tokens only, drafts cut at the first odd one as vLLM's scheduler does for structured output
grammar-drawn       the same, but the proposer does not know of it and samples
"""

import contextlib
import itertools
import os
import random
import sys
import unittest.mock

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

import numpy as np
import torch
from safetensors.torch import save_file

from vllm_edsd.policy.base import DraftPolicy

EACH = 1000  # answers to a request, which is cheaper than as many requests
LENGTH, TEMPERATURE = 3, 0.7
EVEN = list(range(0, 128, 2))
PROMPT = [5, 17, 99, 42, 64, 23]
SAMPLED = {"draft_sample_method": "probabilistic", "num_tokens": 3, "policy": "fixed"}
OPTIONS = {
    "edsd": {"num_tokens": 2},
    "stock": {},
    "standard": SAMPLED | {"policy": "evict", "beside": "trigram"},
    "own": SAMPLED | {"policy": "evict", "beside": "trigram"},
    "block": SAMPLED | {"verification": "block"},
    "own-block": SAMPLED | {"verification": "block"},
    "grammar": SAMPLED | {"verification": "block"},
    "grammar-drawn": SAMPLED | {"verification": "block"},
    "greedy": {"num_tokens": 3, "verification": "block"},
}


class Die(DraftPolicy):
    """Lengths that have nothing to do with any token."""

    def __init__(self, max_tokens):
        super().__init__(max_tokens)
        self.random = random.Random(3)
        self.besides = 0  # tokens offered by a model-free proposer and taken up
        self.accepted = 0  # drafted tokens

    def beside(self, requests, chances, context):
        if self.random.random() < 0.6:
            return None
        self.besides += sum(map(len, chances))
        return np.array([self.random.randint(0, len(each)) for each in chances])

    def observe(self, verdicts):
        self.accepted += sum(verdict.accepted for verdict in verdicts)

    def start(self, requests):
        return self.random.random() < 0.9

    def proceed(self, drafting):
        return self.random.random() < 0.9

    def cut(self, drafting):
        return np.array([self.random.randint(0, drafting.drafted) for _ in drafting.requests])


class Everything(Die):
    def beside(self, requests, chances, context):
        return None

    def start(self, requests):
        return True

    def proceed(self, drafting):
        return True

    def cut(self, drafting):
        return np.full(len(drafting.requests), drafting.drafted)


@contextlib.contextmanager
def cut_by_own_probability(drafter):
    """Makes a proposer hand on a request's drafts up to the first that was less likely than its draws are on average."""
    keep = drafter._kept

    def sure():
        kept = keep()
        probs, tokens = torch.stack(drafter.probs, dim=1), torch.stack(drafter.tokens, dim=1).long()
        own = probs.gather(-1, tokens[..., None])[..., 0]
        counts = (own >= probs.square().sum(-1)).long().cumprod(1).sum(1).tolist()
        return [tokens[:count] for tokens, count in zip(kept, counts, strict=True)]

    with unittest.mock.patch.object(drafter, "_kept", sure):
        yield


@contextlib.contextmanager
def cut_by_grammar(core, drawn):
    """Makes the scheduler cut drafts at odd tokens; the proposer knows of it unless `drawn`."""
    manager = core.scheduler.structured_output_manager
    drafter = core.model_executor.driver_worker.worker.model_runner.drafter

    def even(_, tokens):
        return list(itertools.takewhile(lambda token: token % 2 == 0, tokens))

    with (
        unittest.mock.patch.object(manager, "validate_tokens", even),
        unittest.mock.patch.object(drafter, "structured", lambda requests: [not drawn] * len(requests)),
    ):
        yield


def main(target: str, drafter: str, out: str, *wanted: str) -> None:
    hows = [(how, int(count)) for how, count in (each.split("=") for each in wanted)]
    for _, alike in itertools.groupby(hows, lambda each: OPTIONS[each[0]]):
        sample(target, drafter, out, dict(alike))


def sample(target: str, drafter: str, out: str, hows: dict[str, int]) -> None:
    """The answers of one engine."""
    from vllm import LLM, SamplingParams, TokensPrompt

    import vllm_edsd

    first = next(iter(hows))
    speculative = {"speculative_config": {"method": "eagle3", "model": drafter, "num_speculative_tokens": 2}}
    llm = LLM(
        target,
        dtype="float32",
        max_model_len=64,
        max_num_seqs=256,
        max_num_batched_tokens=2048,
        enforce_eager=True,
        skip_tokenizer_init=True,
        kv_cache_memory_bytes=1 << 26,
        seed=11,
        **(speculative if first == "stock" else vllm_edsd.options(drafter, **OPTIONS[first])),
    )
    core = llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner

    for how, count in hows.items():
        params = SamplingParams(n=EACH, temperature=TEMPERATURE, max_tokens=LENGTH, ignore_eos=True, detokenize=False)
        with contextlib.ExitStack() as patches:
            if how.startswith("grammar"):
                runner.drafter.policy = Everything(3)
                patches.enter_context(cut_by_grammar(core, how == "grammar-drawn"))
                params.allowed_token_ids = EVEN
                params.max_tokens += 1  # or hardly a draft would be accepted
            elif how.startswith("own"):
                runner.drafter.policy = Everything(3)
                patches.enter_context(cut_by_own_probability(runner.drafter))
            elif how not in ("edsd", "stock"):
                runner.drafter.policy = Die(3)
            answers = llm.generate([TokensPrompt(prompt_token_ids=PROMPT)] * (count // EACH), params, use_tqdm=False)
        policy = getattr(runner.drafter, "policy", None)
        told = {"sampler": type(runner.rejection_sampler).__name__}
        told |= {name: str(getattr(policy, name, 0)) for name in ("accepted", "besides")}
        tokens = torch.tensor([each.token_ids for answer in answers for each in answer.outputs])
        save_file({"answers": tokens}, f"{out}/{how}", told)


if __name__ == "__main__":
    main(*sys.argv[1:])
