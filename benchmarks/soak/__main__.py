"""A server under a mix of good, bad and broken-off requests: python benchmarks/soak [--minutes 15] [--json PATH]

Serves the bundled target with a drafter in float32, by EVICT behind the guard, keeps so many clients busy, and checks that
valid requests get the right text and invalid ones a 4xx, that nothing of a request stays behind, that memory is flat, that
the log is clean, that the server is healthy while the guard has drafting off, and that SIGTERM lets it finish. Ends with 1
where a check fails.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from random import Random

import openai
from checks import Check, flat, json_lines, quiet
from drain import drain
from faults import guarded, named, warm_up
from mix import ANOTHER, MODEL, SHARES, MismatchError, Mix
from policy import install
from references import references
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from watch import Watch, by_label, metrics

from vllm_edsd.bench.environment import describe
from vllm_edsd.engine.server import Server, serve
from vllm_edsd.errors import UserError
from vllm_edsd.files import atomic
from vllm_edsd.targets import default_target

DRAFTER = "smollm2-eagle3"
LOGGING = Path(__file__).parents[2] / "deploy" / "logging" / "json.json"
# Compiled matrix products that oneDNN keeps, one for each shape it meets. Its own limit is 1024, which it takes a quarter of
# an hour and hundreds of MiB to reach: nobody could tell that from a leak.
PRODUCTS = "64"
DRAIN_SECONDS, IDLE_SECONDS, ANSWER_SECONDS = 60, 30.0, 120.0
ARGUMENTS = (
    *("--served-model-name", MODEL, "--dtype", "float32", "--enforce-eager", "--max-model-len", "512"),
    # Prompts longer than a step, more requests than slots where a client asks for several answers, and a KV cache that is
    # too small for some moments.
    *("--max-num-batched-tokens", "256", "--max-num-seqs", "16", "--kv-cache-memory-bytes", str(1 << 27)),
    *("--shutdown-timeout", str(DRAIN_SECONDS), "--edsd", DRAFTER, "--edsd.policy", "soak"),
    *("--edsd.beside", "lookup"),
)


class Soak:
    """Keeps `concurrency` clients busy and counts what they met."""

    def __init__(self, server: Server, mix: Mix, concurrency: int, seed: int):
        self.server = server
        self.mix = mix
        self.concurrency = concurrency
        self.seed = seed
        self.sent: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, seconds: float) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("soak"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task, begun = bar.add_task("", total=seconds), time.monotonic()
            clients = asyncio.gather(*(self._client(number, begun + seconds) for number in range(self.concurrency)))
            while not clients.done():
                self.server.check()
                said = f"{self.sent.total()} requests, {len(self.wrong)} wrong"
                bar.update(task, completed=min(time.monotonic() - begun, seconds), description=said)
                await asyncio.wait([clients], timeout=1)
            await clients

    async def _client(self, number: int, until: float) -> None:
        random = Random(f"{self.seed}-{number}")
        while time.monotonic() < until:
            (kind,) = random.choices(list(SHARES), list(SHARES.values()))
            self.sent[kind.__name__] += 1
            try:
                await kind(self.mix, random)
            except (MismatchError, ValueError, openai.OpenAIError) as error:
                self.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")

    def check(self) -> Check:
        seen = f"{self.sent.total() - len(self.wrong)} of {self.sent.total()}"
        missing = [kind.__name__ for kind in SHARES if not self.sent[kind.__name__]]
        seen += f"; none of {', '.join(missing)}" if missing else ""
        return Check("every request got what it must", not self.wrong and not missing, seen)


async def idle(server: Server) -> list[Check]:
    """Waits until nothing runs, and looks for what requests left behind."""
    until = time.monotonic() + IDLE_SECONDS
    while True:
        found = metrics(server)
        running = sum(sum(found[f"vllm:num_requests_{state}"].values()) for state in ("running", "waiting"))
        held = by_label(found.get("edsd:tracked_requests", {}), "holder")
        if (not running and held and not any(held.values())) or time.monotonic() > until:
            break
        await asyncio.sleep(0.5)
    statuses = by_label(found["http_requests_total"], "status")
    return [
        Check("nothing runs once the clients have gone", not running, f"{running:.0f} requests"),
        Check("no state of a request is left", bool(held) and not any(held.values()), str(held)),
        Check("no answer was a 5xx", not statuses.get("5xx"), str(statuses)),
    ]


def log_checks(folder: Path) -> list[Check]:
    """Of the server's output so far: vLLM itself logs an error when a server that drained ends."""
    lines, others = ((folder / name).read_text().splitlines() for name in ("stdout", "stderr"))
    return [json_lines("the log is JSON", lines), quiet("no error in the log", lines, others, f"model `{ANOTHER}`")]


async def soak(server: Server, found: list, options: argparse.Namespace) -> tuple[Soak, Watch, list[Check]]:
    """Everything that is done with a running server, to its end."""
    client = openai.AsyncOpenAI(
        base_url=f"{server.url}/v1",
        api_key="unused",
        max_retries=0,
        timeout=ANSWER_SECONDS,
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    )
    async with client:
        mix = Mix(client, found)
        load = Soak(server, mix, options.concurrency, options.seed)
        checks = [await warm_up(mix, options.concurrency), await named(server, mix), await guarded(server, mix)]
        with Watch(server) as watch:
            await load.run(60 * options.minutes)
        times, sizes = zip(*((sample.seconds, sum(sample.mebibytes.values())) for sample in watch.samples), strict=True)
        checks += [
            load.check(),
            *await idle(server),
            flat("memory is flat", times, sizes),
            Check(
                "healthy at every look",
                all(sample.healthy for sample in watch.samples),
                f"{sum(sample.healthy for sample in watch.samples)} of {len(watch.samples)} times",
            ),
            *log_checks(options.log),
            *await drain(server, mix, DRAIN_SECONDS + 30),
        ]
    return load, watch, checks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--log", type=Path, default=Path(".cache/soak"), help="folder for the server's output")
    options = parser.parse_args()
    options.log.mkdir(parents=True, exist_ok=True)
    install(options.log / "plugin")
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(LOGGING)
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = PRODUCTS
    target = default_target()
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(references, target)
        with serve(str(target), ARGUMENTS, options.log / "stdout", errors=options.log / "stderr") as server:
            load, watch, checks = asyncio.run(soak(server, answers.result(), options))
    for check in checks:
        print(f"{'ok  ' if check.holds else 'FAIL'} {check.name}: {check.seen}")
    for problem in load.wrong[:20]:
        print(f"     {problem[:500]}")
    if options.json is not None:
        result = {
            "environment": describe(target, None) | {"target": target.name},
            "arguments": list(ARGUMENTS),
            "onednn_primitive_cache_capacity": int(PRODUCTS),
            "options": {
                name: str(value) for name, value in vars(options).items() if name in ("minutes", "concurrency", "seed")
            },
            "requests": dict(load.sent),
            "checks": [asdict(check) for check in checks],
            "wrong": load.wrong[:20],
            "samples": [asdict(sample) for sample in watch.samples[:: max(1, len(watch.samples) // 60)]],
        }
        with atomic(options.json) as partial:
            partial.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if all(check.holds for check in checks) else 1)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"soak: error: {error}")
