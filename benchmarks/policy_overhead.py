"""What policy evict costs a step inside the engine: python benchmarks/policy_overhead.py TARGET DRAFTER PROMPTS OUT [DTYPE].

All that is asked of the policy (guard, lookup's judge and metrics included) and of the proposer beside the drafter, in wall
clock, beside whole steps that read no prompt. One engine in this process; greedy, eager, bfloat16 where no dtype is given;
medians of rounds.
"""

import collections
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

TOKENS, ROUNDS = 64, 5
REQUESTS = (1, 16)  # at a time
PROMPTS = 16
PARTS = ("policy", "lookup", "step")
ASKED = ("start", "proceed", "cut", "observe", "timed", "beside", "forget")


def main(target: str, drafter: str, prompts: str, out: str, dtype: str = "bfloat16") -> None:
    import vllm_edsd
    from vllm_edsd.prompts import read_prompts
    from vllm_edsd.training.export import environment

    settings = vllm_edsd.options(drafter, target, policy="evict")
    from vllm import LLM, SamplingParams

    llm = LLM(
        target,
        dtype=dtype,  # type: ignore[arg-type]
        max_model_len=2048,
        max_num_seqs=max(REQUESTS),
        kv_cache_memory_bytes=1 << 29,
        enforce_eager=True,
        enable_prefix_caching=False,
        **settings,
    )
    engine = llm.llm_engine.engine_core.engine_core
    proposer = engine.model_executor.driver_worker.worker.model_runner.drafter
    clocks = Clocks(proposer.clock)
    for name in ASKED:
        clocks.watch(proposer.policy, name, "policy")
    for name in ("draft", "chances"):
        clocks.watch(proposer.beside, name, "lookup")
    clocks.watch(engine, "step_fn", "step")
    messages = [prompt.messages() for prompt in read_prompts(Path(prompts), PROMPTS)]
    params = SamplingParams(temperature=0, max_tokens=TOKENS)
    rows = []
    for requests in REQUESTS:
        rounds = []
        for _ in range(ROUNDS + 1):
            clocks.steps.clear()
            for first in range(0, len(messages), requests):
                llm.chat(messages[first : first + requests], params, use_tqdm=False)  # type: ignore[arg-type]
            rounds.append({name: 1e3 * statistics.mean(step[name] for step in clocks.steps) for name in PARTS})
        medians = {name: statistics.median(each[name] for each in rounds[1:]) for name in PARTS}
        share = (medians["policy"] + medians["lookup"]) / medians["step"]
        rows.append({"requests": requests, "milliseconds": medians, "share": share})
        print(requests, json.dumps(medians), f"{share:.1%}")
    command = " ".join(["python", *sys.argv])
    Path(out).write_text(
        json.dumps({**environment(), "command": command, "drafter": drafter, "rows": rows}, indent=2) + "\n"
    )


class Clocks:
    """Seconds by part of each step that reads no prompt."""

    def __init__(self, decoding: Any):
        self.decoding = decoding  # engine.clock.StepClock
        self.now: collections.Counter[str] = collections.Counter()
        self.steps: list[collections.Counter[str]] = []

    def watch(self, place: Any, name: str, part: str) -> None:
        """Adds the time of each call of a method to `part`; with the part "step" a step ends."""
        call: Callable[..., Any] = getattr(place, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.now[part] += time.perf_counter() - begun
                if part == "step":
                    if self.decoding.decoding:
                        self.steps.append(self.now)
                    self.now = collections.Counter()

        setattr(place, name, timed)


if __name__ == "__main__":
    main(*sys.argv[1:])
