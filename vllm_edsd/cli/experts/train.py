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
    texts: Annotated[int, typer.Option(min=2, help="Answers to train on.")] = 256,
    held_out: Annotated[int, typer.Option(min=1, help="Answers, not trained on, that it is judged by.")] = 16,
    rank: Annotated[int, typer.Option(min=1, help="Width of the hook.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 5e-4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Fit the hook to what each layer loses, then train all of it for the answers; the target stays as it is."""
    from transformers import AutoConfig

    from vllm_edsd.bench.report import check_place
    from vllm_edsd.cli.experts.common import bar, load
    from vllm_edsd.cli.regen import restart_with_preloads
    from vllm_edsd.config import validate
    from vllm_edsd.errors import UserError
    from vllm_edsd.experts import plan as plans
    from vllm_edsd.experts.kept import keep
    from vllm_edsd.experts.start import start
    from vllm_edsd.experts.texts import choose
    from vllm_edsd.experts.training import HookRecipe, mean_divergence
    from vllm_edsd.experts.training import train as train_hook
    from vllm_edsd.files import replaceable
    from vllm_edsd.training.export import environment
    from vllm_edsd.training.samples import fingerprint, read_samples

    out = replaceable(out, plans.PLAN)
    check_place(out / plans.PLAN)
    recipe = validate(HookRecipe, {"rank": rank, "learning_rate": learning_rate, "seed": seed}, "experts train")
    planned = plans.read(plan)
    plans.check(planned, plan, target)
    width = AutoConfig.from_pretrained(target).hidden_size
    if rank > width:
        raise UserError(f"--rank {rank} is more than the {width} dimensions of {target}'s states; give {width} or less")
    restart_with_preloads()
    chosen = choose(read_samples(data), texts + held_out, seed)
    model = load(target, "bfloat16")
    counts, mode = planned.experts, planned.mode
    console = Console(stderr=True)
    with bar(console) as progress:
        task = progress.add_task("states", total=len(chosen), note="")
        kept = keep(model, chosen, counts, lambda: progress.advance(task))
        used, control = kept[:texts], kept[texts:]
        task = progress.add_task("fit", total=texts, note="")
        hooks = start(model, used, counts, mode, rank, lambda: progress.advance(task))
        divergences = {"without": mean_divergence(model, control, counts, mode, None)}
        divergences["fitted"] = mean_divergence(model, control, counts, mode, hooks)
        task = progress.add_task("training", total=recipe.epochs * texts, note="")

        def show(loss: float) -> None:
            progress.update(task, advance=1, note=f"loss {loss:.3f}")

        train_hook(model, used, counts, mode, hooks, recipe, show)
        divergences["trained"] = mean_divergence(model, control, counts, mode, hooks)
    provenance = {
        **environment(),
        "data": f"sha256:{fingerprint(data)}",
        "recipe": recipe.model_dump(),
        "texts": texts,
        "held_out": {"texts": held_out, "kl": divergences},
        "plan": planned.provenance,
    }
    place = plans.HookPlace(layers=tuple(sorted(hooks)), rank=rank)
    plans.write(planned.model_copy(update={"hook": place, "provenance": provenance}), hooks, out)
    table = Table("hook", "held-out KL (nats)")
    for name, value in divergences.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)
    if divergences["trained"] >= divergences["without"]:
        console.print("this hook does not help: serve the plan without it, or try more texts or a lower rate")
    console.print(f"wrote {out}")
