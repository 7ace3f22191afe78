"""`vllm-edsd regen` over a Ray cluster: every worker makes its part of the shards, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm_edsd.engine.ray_cluster import cpus_each, join, leave, ray
from vllm_edsd.errors import UserError
from vllm_edsd.training.samples import made_with

SECONDS = 1.0  # between two looks at the shards
LINES = 12  # of a failed part's last words


def over_ray(arguments: Sequence[str], workers: int, out: Path, report: Callable[[int], None]) -> None:
    """Runs `vllm-edsd regen *arguments --part i/workers` for all parts; `report(tokens)` for every shard that is finished.

    The cluster is the one that RAY_ADDRESS names, or one started here. A worker has a GPU to itself where the cluster has
    any, else as many CPUs as all can have. `out`, prompts and target must be on a disk that all nodes share. Raises
    UserError where the cluster is too small or a part fails; finished shards stay, and the same command goes on from them.
    """
    started = join(workers)
    try:
        run = _worker(workers)
        parts = {run.remote([*arguments, "--part", f"{part}/{workers}"], Path.cwd()): part for part in range(1, workers + 1)}
        seen: set[Path] = set()
        waiting = list(parts)
        while waiting:
            done, waiting = ray.wait(waiting, timeout=SECONDS)
            for path in sorted(set(out.glob("samples-*.safetensors")) - seen):
                seen.add(path)
                report(made_with(path)["response_tokens"])
            for part in done:
                node, code, words = ray.get(part)
                if code:
                    raise UserError(
                        f"part {parts[part]}/{workers} on node {node} ended with exit code {code}; finished shards stay in "
                        f"{out}, run the same command to go on. It said:\n{words}"
                    )
    finally:
        leave(started, None)


def _worker(workers: int) -> Any:
    """The remote function, with what one worker of so many takes of the cluster."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := sum(node.get("GPU", 0.0) for node in nodes):
        if gpus < workers:
            raise UserError(f"--ray {workers} needs a GPU for each worker, and the Ray cluster has {gpus:g}; ask for fewer")
        return ray.remote(num_gpus=1, max_retries=0)(_part)
    cpus = cpus_each([node.get("CPU", 0.0) for node in nodes], workers)
    if not cpus:
        raise UserError(f"--ray {workers} needs a CPU for each worker, and the Ray cluster has too few; ask for fewer")
    threads = {"OMP_NUM_THREADS": str(cpus), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return ray.remote(num_cpus=cpus, max_retries=0, runtime_env={"env_vars": threads})(_part)


def _part(arguments: list[str], folder: Path) -> tuple[str, int, str]:
    """The node, the exit code and the last words of one part."""
    command = [sys.executable, "-m", "vllm_edsd.cli.main", "regen", *arguments]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return os.uname().nodename, done.returncode, "\n".join(done.stdout.splitlines()[-LINES:])
