"""Engines in one process take steps in turn: python benchmarks/turns.py TARGET DRAFTER PROMPTS OUT ARMS LEVEL...

ARMS are `none`, which decodes plainly, and policies (`evict:8`, `fixed:3`), with commas between; a second `none` shows how
much two equal engines differ. A LEVEL is 16=96x256: 16 requests at a time, kept up over 96 prompts, whose answers have at
most 256 tokens, 64 where that is left out. A machine's drift, which hides a few per cent between two servers, meets all
engines alike: the one that has emitted least takes the next step. Greedy, float32, eager, one thread, as vLLM's server has
on two cores. All are compared with the first arm, over everything and by quarters of what is emitted. `seconds_low` are
those of steps with less than half of the requests: at the end, the longer so the less evenly answers end.
"""

import collections
import dataclasses
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from vllm_edsd.engine.cpu import cpu_environment
from vllm_edsd.files import atomic

TOKENS = 64
PARTS = 4  # of a run, to show how a ratio varies


def main(target: str, drafter: str, prompts: str, out: str, arms: str, *levels: str) -> None:
    from transformers import AutoTokenizer

    from vllm_edsd.bench.run import WARM_UP, WARM_UP_TOKENS
    from vllm_edsd.prompts import Prompt, read_prompts
    from vllm_edsd.training.export import environment

    wanted = [Level.parse(level) for level in levels]
    tokenizer = AutoTokenizer.from_pretrained(target)

    def texts(asked: list[Prompt]) -> list[list[int]]:
        return [tokenizer.apply_chat_template(one.messages(), add_generation_prompt=True)["input_ids"] for one in asked]

    engines = [Engine(target, drafter, arm, max(level.requests for level in wanted)) for arm in arms.split(",")]
    rows: list[dict[str, Any]] = []
    for level in wanted:
        warm_up = [Prompt(id=str(n), turns=[WARM_UP.format(n)]) for n in range(max(2, level.requests))]
        run(engines, texts(warm_up), level.requests, WARM_UP_TOKENS)
        run(engines, texts(read_prompts(Path(prompts), level.prompts)), level.requests, level.tokens)
        rows += (summary(engine, engines[0], level) for engine in engines)
        for row in rows[-len(engines) :]:
            print(json.dumps(row), flush=True)
    told = {**environment(), "command": " ".join(["python", *sys.argv]), "drafter": drafter}
    with atomic(Path(out)) as partial:
        partial.write_text(json.dumps({**told, "rows": rows}, indent=2) + "\n")


@dataclasses.dataclass(frozen=True)
class Level:
    """So many requests at a time, over so many prompts, with answers of at most so many tokens."""

    requests: int
    prompts: int
    tokens: int

    @classmethod
    def parse(cls, text: str) -> "Level":
        requests, _, rest = text.partition("=")
        prompts, _, tokens = rest.partition("x")
        return cls(int(requests), int(prompts), int(tokens or TOKENS))


class Engine:
    """An engine with a clock that only runs while it makes a step."""

    def __init__(self, target: str, drafter: str, arm: str, most: int):
        import vllm_edsd

        policy, _, length = arm.partition(":")
        drafts = policy != "none"
        settings = vllm_edsd.options(drafter, target, policy=policy, num_tokens=int(length)) if drafts else {}
        from vllm import LLM

        self.arm = arm
        self.engine = LLM(
            target,
            dtype="float32",
            max_model_len=2048,
            max_num_seqs=most,
            kv_cache_memory_bytes=max(4, most) << 25,  # 728 tokens a request; where it is short, prompts are read again
            enforce_eager=True,
            enable_prefix_caching=False,
            **settings,
        ).llm_engine
        self.used = 0.0  # seconds
        self.begun: float | None = None
        core = self.engine.engine_core.engine_core  # type: ignore[attr-defined]
        drafter_of = getattr(core.model_executor.driver_worker.worker.model_runner, "drafter", None)
        if hasattr(drafter_of, "clock"):
            drafter_of.clock.now = self.now
        self.answers: dict[str, list[int]] = {}
        self.steps: list[tuple[float, int]] = []  # seconds, tokens emitted

    def now(self) -> float:
        """Seconds of its own."""
        return self.used + (time.perf_counter() - self.begun if self.begun is not None else 0.0)

    def begin(self, prompts: list[list[int]], level: int, tokens: int) -> None:
        from vllm import SamplingParams, TokensPrompt

        self.answers, self.steps, self.low, self.level = {}, [], 0.0, level
        params = SamplingParams(temperature=0, max_tokens=tokens, detokenize=False)
        self.waiting = collections.deque(
            (str(number), TokensPrompt(prompt_token_ids=prompt), params) for number, prompt in enumerate(prompts)
        )
        for _ in range(level):
            self._ask()

    def _ask(self) -> None:
        if self.waiting:
            self.engine.add_request(*self.waiting.popleft())

    @property
    def emitted(self) -> int:
        return sum(map(len, self.answers.values()))

    def step(self) -> None:
        low = self.engine.get_num_unfinished_requests() < self.level / 2
        before, begun = self.emitted, time.perf_counter()
        self.begun = begun
        outputs = self.engine.step()
        seconds, self.begun = time.perf_counter() - begun, None
        self.used += seconds
        self.low += seconds * low
        for output in outputs:
            self.answers[output.request_id] = list(output.outputs[0].token_ids)  # type: ignore
            if output.finished:
                self._ask()
        self.steps.append((seconds, self.emitted - before))


def run(engines: list[Engine], prompts: list[list[int]], level: int, tokens: int) -> None:
    for engine in engines:
        engine.begin(prompts, level, tokens)
    while busy := [engine for engine in engines if engine.engine.has_unfinished_requests()]:
        min(busy, key=lambda engine: (engine.emitted, len(engine.steps))).step()


def summary(engine: Engine, plain: Engine, level: Level) -> dict[str, Any]:
    """What an arm did at a concurrency."""
    own, other = shares(engine), shares(plain)
    return {
        "arm": engine.arm,
        "concurrency": level.requests,
        "max_tokens": level.tokens,
        "tokens": engine.emitted,
        "steps": len(engine.steps),
        "seconds": round(sum(own), 2),
        "seconds_low": round(engine.low, 2),
        "speedup": round(sum(other) / sum(own), 4),
        "speedup_parts": [round(before / now, 3) for before, now in zip(other, own, strict=True)],
        "identical_share": sum(engine.answers[key] == text for key, text in plain.answers.items()) / len(plain.answers),
    }


def shares(engine: Engine) -> list[float]:
    """Seconds of each of PARTS even parts of what was emitted."""
    found = [0.0] * PARTS
    done = itertools.accumulate(tokens for _, tokens in engine.steps)
    for (seconds, tokens), end in zip(engine.steps, done, strict=True):
        found[min(PARTS - 1, (end - tokens) * PARTS // engine.emitted)] += seconds
    return found


if __name__ == "__main__":
    environment = cpu_environment(os.environ)
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    main(*sys.argv[1:])
