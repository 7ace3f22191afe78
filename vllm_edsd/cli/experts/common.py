"""What the commands share: the target in memory, and a bar."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vllm_edsd.targets import require_target


def bar(console: Console) -> Progress:
    """A progress bar whose tasks have a `note`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def load(target: Path, dtype: str) -> Any:
    """The target as a frozen transformers model of `dtype` on the CPU. Raises UserError where there is no checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    require_target(target)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)
