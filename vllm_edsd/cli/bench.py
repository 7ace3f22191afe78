"""`vllm-edsd bench`: arms side by side on real servers."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    prompts: Annotated[Path, typer.Option(help="Prompt file: JSON lines with `id` and `turns`, gzipped or not.")],
    target: Annotated[
        list[str] | None, typer.Argument(help="Target: a directory or hub id. Default: the bundled SmolLM2, made on demand.")
    ] = None,
    arms: Annotated[
        list[str] | None, typer.Option(help="Any of none ngram suffix eagle3 edsd.  [default: none,edsd]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take so many prompts, spread over their categories.")] = None,
    concurrency: Annotated[
        list[str] | None, typer.Option(help="Requests open at a time, as in 1,4,16.  [default: 1]")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Seed of the engines.")] = 0,
    num_tokens: Annotated[int, typer.Option(help="Draft tokens per step (K), for all arms.")] = 5,
    policies: Annotated[
        list[str] | None,
        typer.Option(help="Policies of eagle3 and edsd, as in fixed:3,evict,evict:8+none.  [default: as vllm serve has it]"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 256,
    drafter: Annotated[
        list[str] | None, typer.Option(help="ARM=DRAFTER, a bundled name or a directory; repeatable.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG to this file.  [default: beside --json]")] = None,
    enforce_eager: Annotated[bool, typer.Option("--enforce-eager", help="Start servers faster, without compiling.")] = False,
) -> None:
    """Measure speed, acceptance length, latency and identity of answers, arm by arm. Status 1 if a request failed."""
    from vllm_edsd.bench.arguments import check_dtype, check_range, parse_drafters, sort_out, split
    from vllm_edsd.bench.report import check_place, label, positions, table, write
    from vllm_edsd.config import MOST_TOKENS
    from vllm_edsd.prompts import read_prompts

    lists = sort_out(target or [], arms or ["none,edsd"], concurrency or ["1"])
    drafters = parse_drafters(drafter or [])
    check_dtype(dtype)
    for name, value, least in (("--temperature", temperature, 0), ("--seed", seed, 0), ("--max-tokens", max_tokens, 1)):
        check_range(name, value, least)
    check_range("--num-tokens", num_tokens, 1, MOST_TOKENS)
    chosen = read_prompts(prompts, limit)
    picture = plot or (json.with_suffix(".png") if json is not None else None)
    for place in (json, picture):
        if place is not None:
            check_place(place)

    from rich.console import Console

    from vllm_edsd.bench.plot import plot as draw
    from vllm_edsd.bench.progress import Progress
    from vllm_edsd.bench.run import BenchOptions, run_bench
    from vllm_edsd.bench.target import find_target
    from vllm_edsd.engine.serve import place as where
    from vllm_edsd.serving import default_policy

    with Progress() as progress:
        options = BenchOptions(
            target=find_target(lists.target, progress.say),
            arms=lists.arms,
            prompts=tuple(chosen),
            prompts_file=prompts,
            limit=limit,
            concurrency=lists.concurrency,
            temperature=temperature,
            dtype=dtype,
            seed=seed,
            num_tokens=num_tokens,
            policies=split(policies or []) or (default_policy(where({})),),
            max_tokens=max_tokens,
            enforce_eager=enforce_eager,
            drafters=drafters,
        )
        result = run_bench(options, progress).json()
    if json is not None:
        write(result, json)
    if picture is not None:
        draw(result, picture)
    Console().print(table(result), *positions(result), sep="\n", highlight=False)
    for row in result["arms"]:
        for error in row["errors"]:
            typer.echo(f"{label(row)}, concurrency {row['concurrency']}: a request failed: {error}", err=True)
    if any(row["failed_requests"] for row in result["arms"]):
        raise typer.Exit(1)
