"""`vllm-edsd robustness`: what foreign system prompts cost drafters."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vllm_edsd.cli.eval import check_numbers
from vllm_edsd.cli.regen import restart_with_preloads


def robustness(
    drafters: Annotated[
        list[str], typer.Option(help="Drafters with commas, as in smollm2-eagle3,smollm2-edsd; factors are of the first.")
    ],
    prompts: Annotated[Path, typer.Option(help="Prompt file; the first turns are asked under every system prompt.")],
    systems: Annotated[Path, typer.Option(help="System prompts: JSON lines with `system` and optionally `class`.")],
    target: Annotated[
        str | None, typer.Option(help="Target: a directory or hub id.  [default: the bundled SmolLM2, made on demand]")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take so many prompts, spread over their categories.")] = None,
    num_tokens: Annotated[int, typer.Option(help="Draft tokens per step (K).")] = 5,
    temperature: Annotated[float, typer.Option(help="Of the target's answers; 0 is greedy.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 256,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of target and drafters.")] = "bfloat16",
    seed: Annotated[int, typer.Option(help="Of the choice of system prompts, sampled answers and intervals.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG to this file.  [default: beside --json]")] = None,
) -> None:
    """Ask the same user turns under other system prompts and compare acceptance with that under the training one."""
    from vllm_edsd.bench.arguments import split
    from vllm_edsd.bench.report import check_place, write
    from vllm_edsd.errors import UserError
    from vllm_edsd.prompts import read_prompts

    check_numbers(num_tokens, temperature, max_tokens, seed)
    chosen = read_prompts(prompts, limit)
    names = split(drafters)
    if not names:
        raise UserError("--drafters is empty; give some, as in --drafters smollm2-eagle3,smollm2-edsd")
    picture = plot or (json.with_suffix(".png") if json is not None else None)
    for place in (json, picture):
        if place is not None:
            check_place(place)

    restart_with_preloads()
    from rich.console import Console

    from vllm_edsd.bench.progress import Progress
    from vllm_edsd.bench.target import find_target
    from vllm_edsd.evaluation.drafters import folders
    from vllm_edsd.evaluation.robustness import result
    from vllm_edsd.evaluation.robustness_report import factors, table
    from vllm_edsd.evaluation.robustness_report import plot as draw
    from vllm_edsd.evaluation.run import EvalOptions, Run
    from vllm_edsd.evaluation.systems import Systems

    known = Systems.read(systems)
    with Progress() as progress:
        place = find_target(target, progress.say)
        options = EvalOptions(
            target=place,
            prompts=tuple(chosen),
            prompts_file=prompts,
            limit=limit,
            num_tokens=num_tokens,
            temperature=temperature,
            max_tokens=max_tokens,
            dtype=dtype,
            seed=seed,
        )
        run = Run(options, folders(names, place), progress)
        progress.total = 2 * len(chosen) * len(known.classes)
        counts = {kind: run.counts(run.answers(known.chats(kind, chosen, seed))) for kind in known.classes}
        made = result(counts, seed, run.describe() | {"systems": known.describe(systems)})
    if json is not None:
        write(made, json)
    if picture is not None:
        draw(made, picture)
    Console().print(table(made), *factors(made), sep="\n", highlight=False)
