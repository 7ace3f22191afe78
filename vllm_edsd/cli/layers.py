"""`vllm-edsd layers`: which of the target's layers a drafter should read."""

from pathlib import Path
from typing import Annotated

import typer


def layers(
    target: Annotated[Path, typer.Argument(help="Directory of the target's Hugging Face checkpoint.")],
    data: Annotated[Path, typer.Option(help="Directory that `vllm-edsd regen` wrote with this target.")],
    positions: Annotated[int, typer.Option(min=1, help="Positions of the answers to measure at, at least.")] = 2048,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a PNG to this file.")] = None,
) -> None:
    """Logit-lens entropy of the target's layers on its own text, and the pair of layers it suggests."""
    import dataclasses

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Table

    from vllm_edsd.bench.report import check_place, write
    from vllm_edsd.errors import UserError
    from vllm_edsd.targets import require_target
    from vllm_edsd.training.lens import choose, measure, spread
    from vllm_edsd.training.lens_plot import draw
    from vllm_edsd.training.samples import fingerprint, read_samples

    require_target(target)
    for place in (json, plot):
        if place is not None:
            check_place(place)
    chosen = choose(read_samples(data), positions, seed)
    if not chosen:
        raise UserError(f"{data} has no answers; make some with: vllm-edsd regen {target} --out {data}")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("positions", total=sum(len(spread(sample)) for sample in chosen))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        curve = measure(target, chosen, data, device, lambda count: progress.advance(task, count))
    result = {
        "target": target.name,
        "data": f"sha256:{fingerprint(data)}",
        "seed": seed,
        **dataclasses.asdict(curve),
    }
    if json is not None:
        write(result, json)
    if plot is not None:
        draw(curve, target.name, plot)
    shown = Table("layer", "entropy (nats)", "95%", "")
    for layer, (mean, low, high) in enumerate(zip(curve.entropy, curve.low, curve.high, strict=True)):
        mark = "*" if curve.suggested and layer in curve.suggested else ""
        name = str(layer) if layer < len(curve.entropy) - 1 else "output"
        shown.add_row(name, f"{mean:.3f}", f"{low:.3f}..{high:.3f}", mark)
    Console().print(shown, _advice(curve), highlight=False)


def _advice(curve) -> str:
    where = f"{curve.positions} positions of {curve.samples} answers"
    if curve.suggested is None:
        return f"no pair to suggest: the entropy does not collapse before the last but one layer ({where}); try some pairs"
    first, second = curve.suggested
    return (
        f"layers: [{first}, {second}]  (the collapse starts at {first}, 95% {curve.collapse_low}..{curve.collapse_high}, "
        f"and the last but one; {where}); confirm with neighbouring pairs"
    )
