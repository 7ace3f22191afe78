"""`vllm-edsd prompts`: prompts in the target's own words."""

from pathlib import Path
from typing import Annotated

import typer

from vllm_edsd.cli.regen import restart_with_preloads
from vllm_edsd.files import atomic
from vllm_edsd.targets import require_target
from vllm_edsd.training.self_prompts import self_prompts


def prompts(
    target: Annotated[Path, typer.Argument(help="Directory of the target's Hugging Face checkpoint.")],
    out: Annotated[Path, typer.Option(help="JSON lines file to write.")],
    count: Annotated[int, typer.Option(min=1, help="User turns to complete; those not worth asking are left out.")] = 4096,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the user's turn.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer turns are left out.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
) -> None:
    """Let the target complete its own user turn, and keep what is worth asking: prompts without a data set."""
    require_target(target)
    restart_with_preloads()
    from vllm_edsd.engine.offline import OfflineTarget

    engine = OfflineTarget(target, "bfloat16", 2 * max_tokens, max_tokens, seed)
    start = engine.user_turn()
    turns = engine.generate([start] * count, [temperature] * count)
    kept = self_prompts((engine.decode(turn) for turn in turns if len(turn) < max_tokens), f"{target.name}-{seed}")
    with atomic(out) as partial:
        partial.write_text("".join(prompt.model_dump_json() + "\n" for prompt in kept))
    print(f"{out}: {len(kept)} prompts of {count} turns")
