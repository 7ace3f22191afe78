"""`vllm-edsd experts plan`: experts per token by layer, within a budget."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def plan(
    profile: Annotated[Path, typer.Option(help="What `vllm-edsd experts profile` wrote.")],
    out: Annotated[Path, typer.Option(help="Directory for the plan.")],
    budget: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Experts per token, as a share of the model's, on average over the layers."),
    ] = 0.5,
) -> None:
    """The greedy allocation: the layers that lose least give up experts first."""
    from vllm_edsd.config import validate
    from vllm_edsd.errors import UserError
    from vllm_edsd.experts.allocate import allocate
    from vllm_edsd.experts.plan import PLAN, Plan, write
    from vllm_edsd.experts.profile import ExpertsProfile
    from vllm_edsd.files import replaceable
    from vllm_edsd.training.export import environment

    out = replaceable(out, PLAN)
    try:
        measured = validate(ExpertsProfile, json.loads(profile.read_text()), str(profile))
    except (OSError, ValueError) as error:
        raise UserError(f"profile {profile} cannot be read ({error}); make one with: vllm-edsd experts profile") from None
    if budget * measured.top_k < 1:
        raise UserError(f"budget {budget} leaves less than one of {measured.top_k} experts per token; give more")
    curves = {layer.layer: layer.divergence for layer in measured.layers}
    counts = allocate(curves, budget)
    found = Plan(
        model=measured.model,
        mode=measured.mode,
        num_hidden_layers=measured.num_hidden_layers,
        top_k=measured.top_k,
        experts=counts,
        provenance={**environment(), "budget": budget, "profile": measured.provenance},
    )
    write(found, {}, out)
    expected = sum(curves[layer][count - 1] for layer, count in counts.items())
    shown = " ".join(str(count) for count in counts.values())
    Console().print(f"experts by layer: {shown}", f"share {found.share:.2f}, summed KL {expected:.3f} nats", sep="\n")
