"""Greedy answers under every length policy in one engine: python adapt.py TARGET DRAFTER OUT.

The engine is made to do everything that drafts of changing length could upset: prompts read in chunks, requests that come
and go, a KV cache too small for all of them (preemption), and prompts whose beginnings are cached.
"""

import contextlib
import json
import os
import random
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

import numpy as np

from vllm_edsd.engine.enough import Enough
from vllm_edsd.policy.base import DraftPolicy

K = 5
BLOCKS = 13  # of the KV cache, of 32 tokens each
LENGTHS = (3, 9, 40, 17, 90, 64, 33, 128, 12, 75, 50, 21)


class Chaos(DraftPolicy):
    """Decides at random, on and off for long enough that the drafter has to catch up."""

    def __init__(self, max_tokens, on=True):
        super().__init__(max_tokens)
        self.random = random.Random(7)
        self.on, self.left = on, 5

    def start(self, requests):
        self.left -= 1
        if not self.left:
            self.on, self.left = not self.on, self.random.randint(1, 12)
        return self.on

    def proceed(self, drafting):
        return self.random.random() < 0.8

    def cut(self, drafting):
        return np.array([self.random.randint(0, drafting.drafted) for _ in drafting.requests])


class Copies(Chaos):
    """Now and then what the text repeats, as far as a die says, in place of the drafter's."""

    def beside(self, requests, chances, context):
        if self.random.random() < 0.5 or not any(map(len, chances)):
            return None
        return np.array([self.random.randint(0, len(each)) for each in chances])


class NotANumber(DraftPolicy):
    """Would verify everything; stands in for a drafter whose figures went wrong."""

    def start(self, requests):
        return True

    def proceed(self, drafting):
        drafting.top[:, -1] = float("nan")
        return True

    def cut(self, drafting):
        return np.logical_and.accumulate(drafting.usable(), axis=1).sum(axis=1)


def main(target: str, drafter: str, out: str) -> None:
    from vllm import LLM, SamplingParams, TokensPrompt

    import vllm_edsd
    from vllm_edsd.engine import proposer
    from vllm_edsd.policy import registry

    llm = LLM(
        target,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=6,
        max_num_batched_tokens=96,
        num_gpu_blocks_override=BLOCKS,
        block_size=32,
        kv_cache_memory_bytes=1 << 28,
        enforce_eager=True,
        skip_tokenizer_init=True,
        disable_log_stats=False,
        **vllm_edsd.options(drafter, num_tokens=K, policy="evict"),
    )
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    words = random.Random(1)
    start = [words.randrange(200, 9000) for _ in range(32)]
    prompts = [
        start[: length // 2] + [words.randrange(200, 9000) for _ in range(length - length // 2)] for length in LENGTHS
    ]
    params = [SamplingParams(temperature=0, max_tokens=12 + 4 * n, ignore_eos=True, detokenize=False) for n in range(12)]

    def answers() -> list[list[int]]:
        given = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        return [answer.outputs[0].token_ids for answer in llm.generate(given, params, use_tqdm=False)]

    def counts() -> dict[str, float]:
        return {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}

    class Off(Chaos):
        def start(self, requests):
            return False

    makers = {"off": Off, "chaos": Chaos, "alone": Chaos, "copies": Copies, "not-a-number": NotANumber}
    makers["evict+lookup"] = lambda most: registry.make("evict", most, beside=True)
    makers |= {name: lambda most, name=name: registry.make(name, most) for name in registry.OURS}
    results = {}
    for name, make in makers.items():
        before = counts()
        runner.drafter.policy = policy = make(K)
        runner.drafter.alone = name == "alone"
        told: list[tuple[float, float]] = []
        policy.reads = lambda *seconds, told=told: told.append(seconds)
        result = {"answers": [list(tokens) for tokens in answers()]}
        result |= {"later": max(later for later, _ in told), "now": max(now for _, now in told)}
        after = counts()
        result |= {key: after[key] - before.get(key, 0) for key in after if "spec_decode" in key or "preempt" in key}
        results[name] = result
    drafts = {}
    longer = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True, detokenize=False)
    makers |= {"late": lambda most: Chaos(most, on=False)}
    makers |= {"alone": makers["late"]}
    long = start + [words.randrange(200, 9000) for _ in range(74)]  # more than the drafter reads in one pass
    controls = ("chaos-control", "alone-control", "late-control")
    for name in ("fixed", "fixed-long", "chaos", "copies", "late", "alone", *controls):
        llm.reset_prefix_cache()
        runner.drafter.policy = makers[name.removesuffix("-control").removesuffix("-long")](K)
        runner.drafter.alone = name.startswith("alone")
        for layer in runner.drafter._attention().values():
            layer.kv_cache.normal_(std=10)  # what is read unwritten shall tell
        prompt = long if name.startswith(("alone", "fixed-long")) else start
        if name == "chaos-control":
            runner.drafter.backlog.add = lambda *_: None
        if name == "late-control":
            proposer.reading = unread
        drafts[name] = recorded(runner, lambda prompt=prompt: llm.generate([TokensPrompt(prompt_token_ids=prompt)], longer))
    Path(out).write_text(json.dumps({"results": results, "drafts": drafts}))


@contextlib.contextmanager
def unread(_):
    """In place of `reading`: nothing is read."""
    raise Enough
    yield


def recorded(runner, generate) -> dict[int, list[list[float]]]:
    """Tokens drafted while one answer is made and their probabilities, by the number of tokens before the draft."""
    found, propose = {}, runner.drafter.propose

    def record(*args, **kwargs):
        runner.drafter.tokens = []
        kept = propose(*args, **kwargs)
        (request,) = runner.requests.values()
        if runner.drafter.tokens:
            tokens = [int(token[0]) for token in runner.drafter.tokens]
            found[request.num_tokens] = [tokens, runner.drafter.drafting.top[0].tolist()]
        return kept

    runner.drafter.propose = record
    generate()
    del runner.drafter.propose
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
