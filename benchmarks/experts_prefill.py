"""How fast a plan reads prompts, beside the whole target: python benchmarks/experts_prefill.py TARGET PLAN PROMPTS OUT.

One engine, in which the plan and its hook are switched off and on from round to round, so that the arms share every other
circumstance: the whole target, the plan without its hook, and with it.
The bound is 1 / (1 - f + f * k'/k): f is the routed experts' share of the whole target's time, measured in the same run.
"""

import json
import statistics
import sys
import types
from pathlib import Path
from typing import Any

from vllm_edsd.engine.experts_share import engine, prefill, watch, worker

ROUNDS = 12
LENGTH = 256
BATCH = 8
DTYPES = ("float32", "bfloat16")


def main(target: Path, plan: Path, prompts: Path, out: Path) -> None:
    from vllm_edsd.experts.plan import read
    from vllm_edsd.training.export import environment

    share = read(plan).share
    found = {dtype: measure(target, plan, prompts, dtype, share) for dtype in DTYPES}
    command = " ".join(["python", *sys.argv])
    out.write_text(json.dumps({**environment(), "command": command, "share": share, "dtypes": found}, indent=2) + "\n")
    for dtype, figures in found.items():
        print(dtype, json.dumps({name: value for name, value in figures.items() if name != "seconds"}))


def measure(target: Path, plan: Path, prompts: Path, dtype: str, share: float) -> dict[str, Any]:
    """Medians over the rounds of prefill tokens per second by arm, and what they come to."""
    import vllm_edsd
    from vllm_edsd.experts.hook import Hook
    from vllm_edsd.experts.plan import read

    tokens = texts(target, prompts)
    llm = engine(target, dtype, tokens, **vllm_edsd.options(None, str(target), experts=str(plan)))
    held = worker(llm)
    spent = watch(held.model_runner.get_model())
    seconds: dict[str, list[float]] = {"whole": [], "plan": []} | ({"hook": []} if read(plan).hook else {})
    repair = Hook.forward
    shares = []
    for turn in range(len(seconds) * (ROUNDS + 1)):
        arm = list(seconds)[turn % len(seconds)]
        held.rows.set = types.MethodType(cut_nothing if arm == "whole" else type(held.rows).set, held.rows)
        Hook.forward = repair if arm == "hook" else lambda *_: 0.0
        spent.clear()
        took = prefill(llm, tokens)
        if turn >= len(seconds):  # the first of each arm warms up
            seconds[arm].append(took)
            if arm == "whole":
                shares.append(sum(spent) / took)
    f = statistics.median(shares)
    bound = 1 / (1 - f + f * share)
    speedups = {
        arm: statistics.median(whole / cut for whole, cut in zip(seconds["whole"], values, strict=True))
        for arm, values in seconds.items()
        if arm != "whole"
    }
    return {
        "prefill_tokens_per_s": {arm: BATCH * LENGTH / statistics.median(values) for arm, values in seconds.items()},
        "speedup": speedups,
        "experts_share_of_time": f,
        "bound": bound,
        "share_of_bound": {arm: speedup / bound for arm, speedup in speedups.items()},
        "rounds": ROUNDS,
        "seconds": seconds,
    }


def cut_nothing(rows: Any, chosen: Any) -> None:
    """In the place of `Rows.set`."""
    rows.cut = rows.whole = None


def texts(target: Path, prompts: Path) -> list[list[int]]:
    """BATCH prompts of LENGTH tokens of real text."""
    from transformers import AutoTokenizer

    from vllm_edsd.prompts import read_prompts

    tokenizer: Any = AutoTokenizer.from_pretrained(target)
    joined = [token for prompt in read_prompts(prompts) for token in tokenizer.encode(prompt.turns[0])]
    return [joined[place * LENGTH : (place + 1) * LENGTH] for place in range(BATCH)]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
