"""`vllm-edsd eval`: a drafter's acceptance length without a server."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vllm_edsd.cli.regen import restart_with_preloads


def evaluate(
    drafter: Annotated[str, typer.Option(help="Drafter, a bundled name or a directory that `vllm-edsd train` wrote.")],
    prompts: Annotated[Path, typer.Option(help="Prompt file: JSON lines with `id` and `turns`, gzipped or not.")],
    target: Annotated[
        str | None, typer.Option(help="Target: a directory or hub id.  [default: the bundled SmolLM2, made on demand]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take so many prompts, spread over their categories.")] = None,
    num_tokens: Annotated[int, typer.Option(help="Draft tokens per step (K).")] = 5,
    temperature: Annotated[float, typer.Option(help="Of the target's answers; 0 is greedy.")] = 0.0,
    draft_sample_method: Annotated[
        Literal["greedy", "probabilistic"],
        typer.Option(help="The drafter's likeliest tokens, or samples at the temperature; as in vLLM."),
    ] = "greedy",
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 256,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of target and drafter.")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Of sampled answers and of the intervals.")] = 0,
    answers: Annotated[
        Path | None, typer.Option(help="File for the target's answers: read where it exists, else written.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
) -> None:
    """Judge a drafter along the target's own answers: acceptance length by position and category, with intervals."""
    from vllm_edsd.bench.report import check_place, write
    from vllm_edsd.prompts import read_prompts

    check_numbers(num_tokens, temperature, max_tokens, seed)
    chosen = read_prompts(prompts, limit)
    for place in (json, answers):
        if place is not None:
            check_place(place)

    restart_with_preloads()
    from rich.console import Console

    from vllm_edsd.bench.progress import Progress
    from vllm_edsd.bench.target import find_target
    from vllm_edsd.evaluation.drafters import folders
    from vllm_edsd.evaluation.report import result, table
    from vllm_edsd.evaluation.run import EvalOptions, Run

    with Progress() as progress:
        place = find_target(target, progress.say)
        options = EvalOptions(
            target=place,
            prompts=tuple(chosen),
            prompts_file=prompts,
            limit=limit,
            num_tokens=num_tokens,
            temperature=temperature,
            draft_sample_method=draft_sample_method,
            max_tokens=max_tokens,
            dtype=dtype,
            seed=seed,
        )
        run = Run(options, folders([drafter], place), progress)
        progress.total = len(chosen) * (1 if answers is not None and answers.exists() else 2)
        found = run.answers(path=answers)
        made = result(run.counts(found)[drafter], found, seed, run.describe())
    if json is not None:
        write(made, json)
    Console().print(table(made, drafter), highlight=False)


def check_numbers(num_tokens: int, temperature: float, max_tokens: int, seed: int) -> None:
    """Raises UserError for a value out of range."""
    from vllm_edsd.bench.arguments import check_range

    for name, value, least in (
        *(("--num-tokens", num_tokens, 1), ("--temperature", temperature, 0)),
        *(("--max-tokens", max_tokens, 1), ("--seed", seed, 0)),
    ):
        check_range(name, value, least)
