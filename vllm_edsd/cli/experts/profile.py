"""`vllm-edsd experts profile`: what fewer experts cost in each layer."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console


def profile(
    target: Annotated[Path, typer.Argument(help="Directory of the MoE target's Hugging Face checkpoint.")],
    data: Annotated[Path, typer.Option(help="Directory that `vllm-edsd regen` wrote with this target.")],
    out: Annotated[Path, typer.Option(help="File to write the profile to; a PNG goes beside it.")],
    mode: Annotated[
        Literal["prefill", "all"], typer.Option(help="Fewer experts for the prompt's tokens but the last, or for all.")
    ] = "prefill",
    texts: Annotated[int, typer.Option(min=1, help="Answers to measure on.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of answers.")] = 0,
) -> None:
    """KL of the target's predictions against experts per token, layer by layer, and how its routing is spread."""
    from vllm_edsd.bench.report import check_place, write
    from vllm_edsd.cli.experts.common import bar, load
    from vllm_edsd.cli.regen import restart_with_preloads
    from vllm_edsd.engine.experts_share import experts_share
    from vllm_edsd.engine.serve import is_cpu
    from vllm_edsd.experts.plot import draw
    from vllm_edsd.experts.profile import ExpertsProfile, measure
    from vllm_edsd.experts.routed import routed_layers
    from vllm_edsd.experts.texts import choose
    from vllm_edsd.fingerprint import model_fingerprint
    from vllm_edsd.training.export import environment
    from vllm_edsd.training.samples import fingerprint, read_samples

    check_place(out)
    restart_with_preloads()
    console = Console(stderr=True)
    model = load(target, "float32")
    layers = routed_layers(model)
    chosen = choose(read_samples(data), texts, seed)
    with bar(console) as progress:
        task = progress.add_task("layers of texts", total=len(chosen) * len(layers), note="")
        found = measure(model, chosen, mode, lambda: progress.advance(task))
    console.print("timing the experts' share of a prefill")
    share = experts_share(target, "bfloat16", [text.tokens[0].tolist() for text in chosen]) if is_cpu() else None
    result = ExpertsProfile(
        model=model_fingerprint(target),
        mode=mode,
        num_hidden_layers=model.config.num_hidden_layers,
        top_k=layers[0].top_k,
        num_experts=layers[0].experts,
        texts=len(chosen),
        answer_tokens=sum(len(text.wanted) for text in chosen),
        layers=found,
        experts_share_of_prefill=share,
        provenance={**environment(), "data": f"sha256:{fingerprint(data)}", "seed": seed},
    )
    write(result.model_dump(), out)
    draw(result, out.with_suffix(".png"))
    if share is not None:
        console.print(
            f"routed experts take {share:.0%} of a prefill: half as many make it {1 / (1 - share / 2):.2f} times as fast"
        )
    console.print(f"wrote {out} and {out.with_suffix('.png')}")
