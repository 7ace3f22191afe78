"""`vllm-edsd demo`: see it work, with no other input."""

from typing import Annotated

import typer


def demo(num_tokens: Annotated[int, typer.Option(help="Draft tokens per step (K).")] = 2) -> None:
    """Serve the bundled target plain and with the bundled EDSD drafter, send eight prompts, show answers and speed."""
    from vllm_edsd.bench.arguments import check_range

    check_range("--num-tokens", num_tokens, 1)

    from vllm_edsd.demo import run_demo

    run_demo(num_tokens)
