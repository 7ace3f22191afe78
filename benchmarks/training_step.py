"""What the kernels bring a training step, end to end: python benchmarks/training_step.py RECIPE [--json PATH]

The recipe's last step, at full depth, over and over, with EDSD_KERNELS naive and auto in turn. Times are medians; memory
is the peak of a step beyond what was allocated before it.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
import yaml

from vllm_edsd.files import atomic
from vllm_edsd.kernels.dispatch import SWITCH, use_triton
from vllm_edsd.training.export import environment
from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.trainer import Trainer

ARMS = ("naive", "auto")
WARMUP = 4


def main(recipe: Path, steps: int = 40, json_path: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    if not use_triton(torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu")):
        raise SystemExit(f"training_step compares with Triton: it needs a GPU, triton, and no {SWITCH} in the environment")
    trainer = Trainer(Recipe(**yaml.safe_load(recipe.read_text())), Path("unused"), print, lambda *_: None)
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    losses: dict[str, list[float]] = {arm: [] for arm in ARMS}
    peaks: dict[str, int] = dict.fromkeys(ARMS, 0)
    last = len(trainer.batches) - 1  # at the end of the run, where the unroll is at its full depth
    for number in range(steps + WARMUP):
        for arm in ARMS:
            os.environ[SWITCH] = arm
            trainer.step = last
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before, begun = torch.cuda.memory_allocated(), time.perf_counter()
            loss, *_ = trainer._advance()
            torch.cuda.synchronize()
            if number >= WARMUP:
                seconds[arm].append(time.perf_counter() - begun)
                losses[arm].append(loss)
                peaks[arm] = max(peaks[arm], torch.cuda.max_memory_allocated() - before)
    medians = {arm: statistics.median(times) for arm, times in seconds.items()}
    found = {
        **environment(),
        "command": " ".join(["python", *sys.argv]),
        "recipe": trainer.recipe.model_dump(mode="json"),
        "steps": steps,
        "milliseconds": {arm: 1e3 * middle for arm, middle in medians.items()},
        "time_share_of_naive": medians["auto"] / medians["naive"],
        "peak_mib": {arm: peak >> 20 for arm, peak in peaks.items()},
        "loss": {arm: statistics.mean(values) for arm, values in losses.items()},
    }
    if json_path is not None:
        with atomic(json_path) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key not in ("recipe", "versions")}, indent=1))


if __name__ == "__main__":
    typer.run(main)
