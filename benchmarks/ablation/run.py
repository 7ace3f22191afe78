"""Trains every arm of a plan with every seed and judges them: python benchmarks/ablation/run.py OUT RESULT.json

--arms PLAN takes another plan than arms.yaml. A run that is in OUT is not made again. Seed by seed, so that the arms meet
alike noise in what they are timed by.
"""

import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import typer
import yaml

from vllm_edsd.bench.progress import Progress
from vllm_edsd.engine.cpu import cpu_environment
from vllm_edsd.evaluation.drafters import folders
from vllm_edsd.evaluation.intervals import lengths
from vllm_edsd.evaluation.run import EvalOptions, Run
from vllm_edsd.files import atomic
from vllm_edsd.prompts import read_prompts
from vllm_edsd.training.export import environment
from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.trainer import Progress as Step
from vllm_edsd.training.trainer import Trainer

ARMS = Path(__file__).with_name("arms.yaml")
Job = tuple[str, dict[str, Any], Path, int]  # arm, recipe, export, threads


def main(out: Path, result: Path, arms: Path = ARMS, seeds: int = 3, workers: int = 2) -> None:
    plan = yaml.safe_load(arms.read_text())
    threads = max(torch.get_num_threads() // workers, 1)
    jobs = list(jobs_of(plan, out, seeds, threads))
    missing = [job for job in jobs if not record(job[2]).exists()]
    os.environ |= cpu_environment(os.environ)  # for the runs: an allocator loads only with a process
    if missing and "features" in plan["base"]:
        # Here alone, so that no two runs collect the hidden states at once.
        Trainer(Recipe(**missing[0][1]), out / "first", print, lambda *_: None)
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for number, name in enumerate(pool.imap_unordered(train, missing, chunksize=1), 1):
            print(f"{name}: {number} of {len(missing)} runs", flush=True)
    runs: list[dict[str, Any]] = [
        {"arm": arm, "seed": recipe["seed"], **json.loads(record(place).read_text())} for arm, recipe, place, _ in jobs
    ]
    found = {**environment(), "command": " ".join(["python", *sys.argv]), "plan": plan, "workers": workers, "runs": runs}
    for name in plan["prompts"]:
        judged = judge(plan, out, name, [job[2] for job in jobs])
        for run, length in zip(runs, judged, strict=True):
            run.setdefault("acceptance_length", {})[name] = length
        with atomic(result) as partial:  # after each set of prompts: what was judged is not lost with what was not
            partial.write_text(json.dumps(found, indent=1) + "\n")


def jobs_of(plan: dict[str, Any], out: Path, seeds: int, threads: int) -> Iterator[Job]:
    for seed in range(seeds):
        for arm, own in plan["arms"].items():
            recipe = plan["base"] | own | {"seed": seed, "checkpoint_every": 10**9}
            yield arm, recipe, out / f"{arm}-{seed}", threads


def record(place: Path) -> Path:
    return place.with_name(place.name + ".json")


def train(job: Job) -> str:
    """One run in this process: what it cost, and its held-out acceptance length on the way."""
    _, recipe, place, threads = job
    torch.set_num_threads(threads)
    trainer = Trainer(Recipe(**recipe), place, lambda _: None, lambda *_: None)
    curve: list[dict[str, float]] = []

    def shown(step: Step) -> None:
        if step.evaluation:
            length = step.evaluation.acceptance_length
            curve.append({"step": step.step, "seconds": trainer.seconds, "unrolled": trainer.unrolled, "length": length})

    trainer.run(shown)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() >> 20
    made = {
        "parameters": sum(parameter.numel() for parameter in trainer.drafter.parameters()),
        "tokens": sum(item.chains for batch in trainer.batches for item in batch),
        "seconds": trainer.seconds,
        "unroll_steps": trainer.unrolled,
        "peak_memory_mib": peak,
        "curve": curve,
    }
    with atomic(record(place)) as partial:
        partial.write_text(json.dumps(made))
    return place.name


def judge(plan: dict[str, Any], out: Path, name: str, places: list[Path]) -> list[float]:
    """Acceptance lengths of exported drafters along the target's answers to one file of prompts."""
    file, limit = plan["prompts"][name]
    target, answers = Path(plan["base"]["target"]), out / f"answers-{name}.safetensors"
    with Progress() as progress:
        prompts = tuple(read_prompts(Path(file), limit))
        progress.total = len(prompts) * (1 if answers.exists() else 2)
        run = Run(
            EvalOptions(target=target, prompts=prompts, **plan["judged"]), folders(list(map(str, places)), target), progress
        )
        counts = run.counts(run.answers(path=answers))
    return [float(lengths(counts[str(place)].sum(0))) for place in places]


if __name__ == "__main__":
    typer.run(main)
