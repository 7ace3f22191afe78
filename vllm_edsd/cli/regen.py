"""`vllm-edsd regen`: the target's own answers to prompts, as training data."""

import random
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vllm_edsd.engine.cpu import restart
from vllm_edsd.errors import UserError
from vllm_edsd.prompts import Prompt, distinct, read_prompts
from vllm_edsd.targets import require_target
from vllm_edsd.training.belonging import fingerprint
from vllm_edsd.training.regen import RegenOptions, regenerate


def regen(
    target: Annotated[Path, typer.Argument(help="Directory of the target's Hugging Face checkpoint.")],
    prompts: Annotated[
        list[str],
        typer.Option(help="Prompts: JSON lines with `id` and `turns`, gzipped or not; FILE:N takes N of them at random."),
    ],
    out: Annotated[Path, typer.Option(help="Directory for the shards; run again with the same options to resume.")],
    tokens: Annotated[int, typer.Option(min=1, help="Stop after so many response tokens.")] = 1_000_000,
    temperature: Annotated[
        list[float], typer.Option(min=0, help="Repeat for several: prompts take them in turn. 0 is greedy.")
    ] = [0.0, 0.0, 0.8],  # noqa: B006 - typer reads it, nothing writes to it
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 256,
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="Longer prompts are left out.")] = 768,
    shard_size: Annotated[int, typer.Option(min=1, help="Prompts in a shard, the unit of resuming.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts' order and of the sampling.")] = 0,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of the target in vLLM.")] = "bfloat16",
    part: Annotated[str, typer.Option(help="i/n: make the i-th of every n shards; n runs share --out.")] = "1/1",
    ray: Annotated[
        int | None, typer.Option(min=1, help="So many parts at once on a Ray cluster: RAY_ADDRESS, or one started here.")
    ] = None,
) -> None:
    """Regenerate responses with the target through vLLM, with its own chat template."""
    mine, parts = _part(part)
    if ray is not None and parts > 1:
        raise UserError(f"--part {part} and --ray {ray} exclude each other; --ray makes the parts itself")
    require_target(target)
    chosen = gather(prompts, seed)
    share = -(-tokens // parts)
    if ray is not None:
        from vllm_edsd.engine.ray_regen import over_ray

        given = {"--out": out, "--tokens": tokens, "--max-tokens": max_tokens, "--max-prompt-tokens": max_prompt_tokens}
        given |= {"--shard-size": shard_size, "--seed": seed, "--dtype": dtype}
        repeated = [f"--prompts={source}" for source in prompts] + [f"--temperature={heat}" for heat in temperature]
        with _Bar(share) as bar:
            over_ray([str(target), *repeated, *(f"{key}={value}" for key, value in given.items())], ray, out, bar.report)
    else:
        restart_with_preloads()
        from vllm_edsd.engine.offline import OfflineTarget

        engine = OfflineTarget(target, dtype, max_prompt_tokens + max_tokens, max_tokens, seed + mine - 1)
        marks = fingerprint(target)
        options = RegenOptions(target.name, tuple(temperature), max_tokens, max_prompt_tokens, shard_size, seed, marks)
        asks = (engine.render, engine.decode, engine.generate)
        with _Bar(share) as bar:
            regenerate(chosen, *asks, options, out, share, bar.report, (mine, parts))
    print(f"{out}: {bar.written} response tokens in part {part}" if parts > 1 else f"{out}: {bar.written} response tokens")


class _Bar:
    """Response tokens written so far, of `total`."""

    def __init__(self, total: int):
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self.bar = Progress(TextColumn("{task.description}"), *columns, TimeElapsedColumn(), TimeRemainingColumn())
        self.task = self.bar.add_task("response tokens", total=total, rate="")
        self.written = 0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def report(self, tokens: int) -> None:
        self.written += tokens
        self.bar.advance(self.task, tokens)
        speed = self.bar.tasks[0].speed
        self.bar.update(self.task, rate=f"{speed:.0f} tok/s" if speed else "")


def gather(sources: list[str], seed: int) -> list[Prompt]:
    """The distinct prompts of several `FILE` or `FILE:N`. Raises UserError where N is 0."""
    found: list[Prompt] = []
    for source in sources:
        name, _, count = source.rpartition(":")
        if name and count.isdecimal():
            if int(count) == 0:
                raise UserError(f"--prompts {source} takes no prompts; give FILE:N with N of 1 or more, or FILE for all")
            prompts = read_prompts(Path(name))
            found += random.Random(seed).sample(prompts, min(int(count), len(prompts)))
        else:
            found += read_prompts(Path(source))
    return distinct(found)


def _part(part: str) -> tuple[int, int]:
    left, _, right = part.partition("/")
    if not (left.isdigit() and right.isdigit() and 1 <= int(left) <= int(right)):
        raise UserError(f"--part {part!r} is not i/n with 1 <= i <= n; give for example 1/2")
    return int(left), int(right)


def restart_with_preloads() -> None:
    """On CPU, starts this command again with the allocator and OpenMP that it wants: they load only with the process."""
    import torch

    if not torch.cuda.is_available() and Path(sys.argv[0]).name == "vllm-edsd":
        restart("vllm_edsd.cli.main")
