"""`vllm-edsd experts train`: the module that repairs a plan."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def train(
    target: Annotated[Path, typer.Argument(help="Directory of the MoE target's Hugging Face checkpoint.")],
    plan: Annotated[Path, typer.Option(help="Directory that `vllm-edsd experts plan` wrote.")],
    data: Annotated[Path, typer.Option(help="Directory that `vllm-edsd regen` wrote with this target.")],
    out: Annotated[Path, typer.Option(help="Directory for the plan with its hook.")],
    layers: Annotated[str | None, typer.Option(help="Layers to try, as 0,4,8.  [default: eight, evenly spread]")] = None,
    texts: Annotated[int, typer.Option(min=2, help="Answers to train on.")] = 256,
    sweep_texts: Annotated[int, typer.Option(min=2, help="Of those, how many each layer is tried on.")] = 48,
    held_out: Annotated[int, typer.Option(min=1, help="Answers, not trained on, that choose the layer.")] = 16,
    rank: Annotated[int, typer.Option(min=1, help="Width of the hook.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train the hook at several layers on few answers, then at the best one on all; the target stays as it is."""
    from vllm_edsd.bench.report import check_place
    from vllm_edsd.cli.experts.common import bar, load
    from vllm_edsd.cli.regen import restart_with_preloads
    from vllm_edsd.config import validate
    from vllm_edsd.errors import UserError
    from vllm_edsd.experts import plan as plans
    from vllm_edsd.experts.texts import choose
    from vllm_edsd.experts.training import HookRecipe, divergence, keep
    from vllm_edsd.experts.training import train as train_hook
    from vllm_edsd.files import replaceable
    from vllm_edsd.training.export import environment
    from vllm_edsd.training.samples import fingerprint, read_samples

    out = replaceable(out, plans.PLAN)
    check_place(out / plans.PLAN)
    recipe = validate(HookRecipe, {"rank": rank, "learning_rate": learning_rate, "seed": seed}, "experts train")
    planned = plans.read(plan)
    plans.check(planned, plan, target)
    known = sorted(planned.experts)
    # What the last layer makes of a prompt reaches nothing.
    useful = [place for place in known if planned.mode == "all" or place < planned.num_hidden_layers - 1]
    places = _places(layers, useful or known)
    if unknown := [place for place in places if place not in planned.experts]:
        raise UserError(f"layers {unknown} are no MoE layers of {plan}; it has {sorted(planned.experts)}")
    restart_with_preloads()
    chosen = choose(read_samples(data), texts + held_out, seed)
    model = load(target, "bfloat16")
    console = Console(stderr=True)
    with bar(console) as progress:
        task = progress.add_task("states", total=len(chosen), note="")
        kept = keep(model, chosen, planned.experts, planned.mode, lambda: progress.advance(task))
        used, control = kept[:texts], kept[texts:]

        def fit(name: str, place: int, items: list) -> tuple:
            task = progress.add_task(name, total=recipe.epochs * len(items), note="")
            hook = train_hook(
                model,
                items,
                planned.experts,
                planned.mode,
                place,
                recipe,
                lambda loss: progress.update(task, advance=1, note=f"loss {loss:.3f}"),
            )
            return hook, divergence(model, control, planned.experts, planned.mode, place, hook)

        before = divergence(model, control, planned.experts, planned.mode, min(places), None)
        tried = {place: fit(f"layer {place}", place, used[:sweep_texts])[1] for place in places}
        best = min(tried, key=lambda place: tried[place])
        hook, after = fit(f"layer {best}, all texts", best, used)
    provenance = {
        **environment(),
        "data": f"sha256:{fingerprint(data)}",
        "recipe": recipe.model_dump(),
        "texts": texts,
        "sweep": {"texts": sweep_texts, "held_out_kl": tried},
        "held_out": {"texts": held_out, "kl_without": before, "kl_with": after},
        "plan": planned.provenance,
    }
    place = plans.HookPlace(layer=best, rank=rank)
    plans.write(planned.model_copy(update={"hook": place, "provenance": provenance}), hook, out)
    table = Table("layer", "held-out KL (nats)")
    table.add_row("no hook", f"{before:.4f}")
    for tested, value in tried.items():
        table.add_row(f"{tested}, {sweep_texts} texts", f"{value:.4f}")
    table.add_row(f"{best}, {texts} texts", f"{after:.4f}")
    Console().print(table)
    if after >= before:
        console.print("this hook does not help: serve the plan without it, or try more texts, other layers or a lower rate")
    console.print(f"wrote {out}")


def _places(given: str | None, known: list[int]) -> list[int]:
    from vllm_edsd.errors import UserError

    if given is None:
        count = min(8, len(known))
        return sorted({known[place * (len(known) - 1) // max(1, count - 1)] for place in range(count)})
    try:
        return [int(part) for part in given.split(",")]
    except ValueError:
        raise UserError(f"--layers {given!r} is no list of layers; give numbers such as 0,4,8") from None
