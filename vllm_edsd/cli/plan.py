"""`vllm-edsd plan`: which drafter size and draft length pay, from finished runs and measured costs."""

from pathlib import Path
from typing import Annotated

import typer


def plan(
    drafters: Annotated[list[str], typer.Argument(help="Drafters that `vllm-edsd train` wrote: names or directories.")],
    cost: Annotated[
        list[Path] | None,
        typer.Option(help="Profile by `vllm-edsd profile` with one of them; repeat for more sizes."),
    ] = None,
    eval: Annotated[
        list[Path] | None,
        typer.Option(help="Results of `vllm-edsd eval`, one a drafter, not held-out figures."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Training tokens to plan for.  [default: those of the longest run]")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests open at a time.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the intervals.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG to this file.")] = None,
) -> None:
    """Fit acceptance length against training tokens and size, and say which size and K are faster than no drafts."""
    import dataclasses

    from rich.console import Console
    from rich.table import Table

    from vllm_edsd.bench.report import check_place, write
    from vllm_edsd.evaluation.report import span
    from vllm_edsd.training.finished import read_runs
    from vllm_edsd.training.planner import plan, read_costs
    from vllm_edsd.training.planner_plot import draw

    for place in (json, plot):
        if place is not None:
            check_place(place)
    runs = read_runs(drafters, eval or [])
    result = plan(runs, read_costs(cost or [], runs, concurrency), tokens, seed)
    if json is not None:
        write({**result, "concurrency": concurrency, "seed": seed, "runs": [dataclasses.asdict(run) for run in runs]}, json)
    if plot is not None:
        draw(runs, result, seed, plot)
    console = Console()
    if result["options"]:
        shown = Table("drafter", "parameters", "K", "acceptance length", "95%", "speed-up", "95%", "")
        for option in result["options"]:
            length, speed = option["acceptance_length"], option["speedup"]
            shown.add_row(
                *(option["kind"], f"{option['parameters'] / 1e6:.2f}M", str(option["num_tokens"])),
                *(f"{length['mean']:.3f}", span(length), f"{speed['mean']:.3f}", span(speed), option["verdict"]),
            )
        console.print(shown, highlight=False)
    for note in result["notes"]:
        console.print(note, highlight=False)
    console.print(_advice(result), highlight=False)


def _advice(result) -> str:
    best, rivals = result["best"], result["rivals"]
    if best is None:
        return "no recommendation: see above"
    name = f"{best['kind']} of {best['parameters'] / 1e6:.2f}M with K = {best['num_tokens']}"
    if best["verdict"] != "pays":
        return f"cannot tell that any option pays; the likeliest is {name}: {best['verdict']}"
    if not rivals:
        return f"take {name}"
    others = ", ".join(f"{each['kind']} {each['parameters'] / 1e6:.2f}M K={each['num_tokens']}" for each in rivals)
    return f"take {name}, which pays; the data cannot tell it from {others}"
