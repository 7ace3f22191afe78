"""`vllm-edsd experts carve`: an MoE target from a dense one."""

from pathlib import Path
from typing import Annotated

import typer


def carve(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file; see vllm_edsd/experts/smollm2.yaml.")],
    out: Annotated[Path, typer.Option(help="Directory for the MoE's checkpoint; the distillation's is kept beside it.")],
) -> None:
    """Carve a small MoE out of a dense Llama-like target and distil it; run again to resume."""
    from rich.console import Console

    from vllm_edsd.cli.experts.common import bar
    from vllm_edsd.cli.regen import restart_with_preloads
    from vllm_edsd.cli.train import read_recipe
    from vllm_edsd.experts.distil import Progress
    from vllm_edsd.experts.make import make
    from vllm_edsd.experts.recipe import CarveRecipe
    from vllm_edsd.files import replaceable
    from vllm_edsd.targets import require_target

    chosen = read_recipe(recipe, CarveRecipe)
    out = replaceable(out, "provenance.json")
    require_target(chosen.target)
    restart_with_preloads()
    console = Console(stderr=True)
    with bar(console) as progress:
        task = progress.add_task("distilling", total=chosen.steps, note="")

        def shown(now: Progress) -> None:
            note = f"KL {now.divergence:.3f}  {now.tokens_per_s:.0f} tok/s"
            progress.update(task, completed=now.step, note=note)

        make(chosen, out, console.print, shown)
    console.print(f"wrote {out}")
