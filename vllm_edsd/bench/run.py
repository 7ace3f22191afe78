"""A run: one server for each arm, and small blocks of prompts that go to the arms in turn.

Timings drift on any shared machine, so an arm is never measured in one piece: every block goes to all arms one after the
other, with the order rotated from block to block. Only the arm that is being measured may use the processor, the others'
servers are paused meanwhile. Only the first turn of each prompt is sent.
"""

import contextlib
import dataclasses
import math
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
from vllm_edsd.drafters.target import read_target
from vllm_edsd.engine.server import Server, serve
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
        servers: dict[Arm, tuple[Server, Load]] = {}
        for level in options.concurrency:
            with contextlib.ExitStack() as passing:
                for arm in arms:
                    # What remembers its answers must not meet the same prompts twice.
                    if arm.remembers or arm not in servers:
                        stack = passing if arm.remembers else lasting
                        servers[arm] = _start(stack, arm, common, folder, options, progress)
                yield from _measure_level(level, {arm: servers[arm] for arm in arms}, options, progress)


def _start(
    stack: contextlib.ExitStack, arm: Arm, common: Sequence[str], folder: Path, options: BenchOptions, progress: Progress
) -> tuple[Server, Load]:
    server = stack.enter_context(
        serve(
            str(options.target),
            [*common, *arm.arguments],
            folder / f"{arm.label.replace(' ', '-').replace(':', '-')}.log",
            progress=lambda seconds: progress.status(f"starting {arm.label} ({seconds:.0f} s)"),
        )
    )
    load = stack.enter_context(Load(server.url, options.max_tokens, options.temperature))
    server.pause()
    return server, load


def _measure_level(
    level: int, servers: dict[Arm, tuple[Server, Load]], options: BenchOptions, progress: Progress
) -> list[Measurement]:
    arms = list(servers)
    warm_up = [Prompt(id=f"warm-up {n}", turns=[WARM_UP.format(n)]) for n in range(max(2, level))]
    for arm, (server, load) in servers.items():
        progress.status(f"warming up {arm.label}, concurrency {level}")
        with _awake(server):
            load.send(warm_up, level, WARM_UP_TOKENS)
    found = {arm: Measurement(arm, level) for arm in arms}
    for block, prompts in enumerate(split(options.prompts, level)):
        turn = block % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            server, load = servers[arm]
            progress.status(f"{arm.label}, concurrency {level}")
            with _awake(server):
                # Alone, each answer has counters of its own.
                for part in [[prompt] for prompt in prompts] if level == 1 else [prompts]:
                    before = server.counters()
                    replies = load.send(part, level)
                    server.check()
                    found[arm].samples.append(Sample(block, tuple(replies), server.counters() - before))
                    progress.advance(len(part))
    return list(found.values())


@contextlib.contextmanager
def _awake(server: Server) -> Iterator[None]:
    server.resume()
    try:
        yield
    finally:
        server.pause()


def split(prompts: Sequence[Prompt], concurrency: int) -> list[Sequence[Prompt]]:
    """Blocks of even size: at least 4 prompts at concurrency 1, else five times the concurrency, where there are as many.

    At the end of a block requests become fewer, and the longer so the less evenly the answers end.
    """
    blocks = max(1, len(prompts) // (4 if concurrency == 1 else 5 * concurrency))
    size = math.ceil(len(prompts) / blocks)
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]
