"""A run: one server for each arm, and all of them under the same load at once.

Timings drift on any shared machine, so an arm is never measured in one piece: the servers take turns of a few seconds, those
that wait are paused, and every figure is of the time in which an arm was awake. Only the first turn of each prompt is sent.
At the end requests become fewer, the longer so the less evenly answers end: it takes many times as many prompts.
"""

import asyncio
import contextlib
import dataclasses
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vllm_edsd.bench.arms import Arm, make_arms
from vllm_edsd.bench.environment import describe
from vllm_edsd.bench.load import MODEL, Load
from vllm_edsd.bench.measure import Measurement, Sample, summary
from vllm_edsd.bench.progress import Progress
from vllm_edsd.bench.sizes import measure_sizes
from vllm_edsd.bench.turns import Turn, take_turns
from vllm_edsd.drafters.target import read_target
from vllm_edsd.engine.server import serve
from vllm_edsd.prompts import Prompt

WARM_UP = "Write the numbers from one to forty in words, separated by commas. This is warm-up number {}."
WARM_UP_TOKENS = 48


@dataclasses.dataclass(frozen=True)
class BenchOptions:
    """What is measured. `prompts_file` is only quoted in the result, together with `limit`."""

    target: Path
    arms: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    prompts_file: Path | None = None
    limit: int | None = None
    concurrency: tuple[int, ...] = (1,)
    temperature: float = 0.0
    dtype: str = "bfloat16"
    seed: int = 0
    num_tokens: int = 5
    policies: tuple[str, ...] = ("evict",)
    max_tokens: int = 256
    enforce_eager: bool = False
    drafters: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The environment of a run and its measurements, by concurrency and arm."""

    environment: dict[str, Any]
    measurements: list[Measurement]

    def json(self) -> dict[str, Any]:
        """The result as it is written: `environment` and `arms`."""
        plain = {found.concurrency: found for found in self.measurements if found.arm.name == "none"}
        heat = self.environment["temperature"]
        arms = [summary(found, plain.get(found.concurrency), heat) for found in self.measurements]
        return {"environment": self.environment, "arms": arms}


def run_bench(options: BenchOptions, progress: Progress) -> Outcome:
    """Starts the servers, measures, stops them. Raises UserError for what cannot be served or dies on the way."""
    arms = make_arms(options.arms, options.num_tokens, options.drafters, read_target(options.target), options.policies)
    sizes = measure_sizes(
        options.target, options.prompts, max(options.max_tokens, WARM_UP_TOKENS), max(options.concurrency), options.dtype
    )
    common = [
        *("--served-model-name", MODEL, "--dtype", options.dtype, "--seed", str(options.seed)),
        # The temperature is the only sampling parameter, and no answer is easier for having been asked before.
        *("--generation-config", "vllm", "--no-enable-prefix-caching"),
        *sizes.arguments(),
        *(["--enforce-eager"] if options.enforce_eager else []),
    ]
    together = sizes.fit(len(arms))
    environment = describe(options.target, options.prompts_file) | {
        "seeds": {"engine": options.seed},
        "num_tokens": options.num_tokens,
        "temperature": options.temperature,
        "dtype": options.dtype,
        "max_tokens": options.max_tokens,
        "limit": options.limit,
        "prompt_count": len(options.prompts),
        "turns": "first",
        "interleaved": together,
        "commands": {arm.label: shlex.join(["vllm", "serve", str(options.target), *common, *arm.arguments]) for arm in arms},
    }
    progress.total = len(arms) * len(options.concurrency) * len(options.prompts)
    if not together:
        progress.say(f"not enough free memory for {len(arms)} servers at once: the arms run one after the other")
    with tempfile.TemporaryDirectory(prefix="vllm-edsd-bench-") as folder:
        measurements = [
            found
            for group in ([arms] if together else [[arm] for arm in arms])
            for found in _measure(group, common, Path(folder), options, progress)
        ]
    places = [(level, arm.label) for level in options.concurrency for arm in arms]
    return Outcome(environment, sorted(measurements, key=lambda found: places.index((found.concurrency, found.arm.label))))


def _measure(
    arms: Sequence[Arm], common: Sequence[str], folder: Path, options: BenchOptions, progress: Progress
) -> Iterator[Measurement]:
    with contextlib.ExitStack() as lasting:
        runner = lasting.enter_context(asyncio.Runner())
        served: dict[Arm, tuple[Turn, Load]] = {}
        for level in options.concurrency:
            with contextlib.ExitStack() as passing:
                for arm in arms:
                    # What remembers its answers must not meet the same prompts twice.
                    if arm.remembers or arm not in served:
                        stack = passing if arm.remembers else lasting
                        served[arm] = _start(stack, runner, arm, common, folder, options, progress)
                yield from _measure_level(level, {arm: served[arm] for arm in arms}, runner, options, progress)


def _start(
    stack: contextlib.ExitStack,
    runner: asyncio.Runner,
    arm: Arm,
    common: Sequence[str],
    folder: Path,
    options: BenchOptions,
    progress: Progress,
) -> tuple[Turn, Load]:
    server = stack.enter_context(
        serve(
            str(options.target),
            [*common, *arm.arguments],
            folder / f"{arm.label.replace(' ', '-').replace(':', '-')}.log",
            progress=lambda seconds: progress.status(f"starting {arm.label} ({seconds:.0f} s)"),
        )
    )
    turn = Turn(server)
    return turn, stack.enter_context(Load(runner, server.url, options.max_tokens, options.temperature, turn.now))


def _measure_level(
    level: int, served: dict[Arm, tuple[Turn, Load]], runner: asyncio.Runner, options: BenchOptions, progress: Progress
) -> list[Measurement]:
    warm_up = [Prompt(id=f"warm-up {n}", turns=[WARM_UP.format(n)]) for n in range(max(2, level))]
    for arm, (turn, load) in served.items():
        progress.status(f"warming up {arm.label}, concurrency {level}")
        with turn:
            load.send(warm_up, level, WARM_UP_TOKENS)
    progress.status(f"concurrency {level}, arms in turn")
    # Alone, each answer has counters of its own.
    parts = [[prompt] for prompt in options.prompts] if level == 1 else [options.prompts]
    work = {turn: _samples(parts, level, turn, load, progress) for turn, load in served.values()}
    samples = runner.run(take_turns(work))
    return [Measurement(arm, level, own) for arm, own in zip(served, samples, strict=True)]


async def _samples(
    parts: Sequence[Sequence[Prompt]], level: int, turn: Turn, load: Load, progress: Progress
) -> list[Sample]:
    samples, before = [], await asyncio.to_thread(turn.server.counters)
    for part in parts:
        replies = await load.ask(part, level, answered=progress.advance)
        turn.server.check()
        after = await asyncio.to_thread(turn.server.counters)
        samples.append(Sample(tuple(replies), after - before))
        before = after
    return samples
