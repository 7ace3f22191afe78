"""A rank on the CPU backend as a Ray actor."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from vllm import envs
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.distributed.parallel_state import get_tp_group
from vllm.utils.cpu_resource_utils import LogicalCPUInfo, get_allowed_cpu_list, parse_id_list
from vllm.v1.executor.ray_executor_v2 import RayWorkerProc

SHARED = Path("/dev/shm")


class RayCPUWorker(RayWorkerProc):
    """vLLM's worker process inside an actor; the executor calls `bind` before it initializes the worker."""

    def bind(self, local_rank: int, ranks: int) -> list[int]:
        """Keeps this rank's threads on CPUs of its own, as VLLM_CPU_OMP_THREADS_BIND says; returns those it may use.

        ranks: how many run on this node.
        """
        mode = envs.VLLM_CPU_OMP_THREADS_BIND
        if mode != "nobind":
            cpus = share(get_allowed_cpu_list(), local_rank, ranks) if mode == "auto" else listed(mode, local_rank)
            if cpus:
                # Threads that are started from now on, OpenMP's among them, inherit this.
                os.sched_setaffinity(0, cpus)
                torch.set_num_threads(len(cpus))
        return sorted(os.sched_getaffinity(0))

    def worker_busy_loop(self) -> None:
        for queue in (self.worker_response_mq, get_tp_group().mq_broadcaster):
            unname(queue)
        for file in SHARED.glob(f"{glob.escape(os.environ['VLLM_DIST_IDENT'])}-*"):  # the ranks' sums
            file.unlink(missing_ok=True)
        super().worker_busy_loop()


def unname(queue: MessageQueue | None) -> None:
    """Takes the name from shared memory that this process has made for a queue, once all who use it have mapped it.

    Then it goes with the last of them, however they end; a killed process cannot tidy up.
    """
    buffer = None if queue is None else queue.buffer
    if buffer is not None and buffer.is_creator:
        buffer.shared_memory.unlink()
        buffer.is_creator = False


def share(cpus: Sequence[LogicalCPUInfo], local_rank: int, ranks: int) -> list[int]:
    """One rank's share of the cores, one CPU for each; empty where there are fewer cores than ranks.

    A share of several leaves one core to the engine and to Ray.
    """
    cores = {(cpu.numa_node, cpu.physical_core): cpu.id for cpu in sorted(cpus, key=lambda cpu: cpu.id)}
    ordered = [cores[core] for core in sorted(cores)]
    size = len(ordered) // ranks
    mine = ordered[local_rank * size : (local_rank + 1) * size]
    return mine[:-1] if size > 1 else mine


def listed(mode: str, local_rank: int) -> list[int]:
    """The CPUs that "0-3|4-7" gives to a rank. Raises ValueError where it names none for it."""
    lists = mode.split("|")
    if local_rank >= len(lists):
        raise ValueError(
            f"VLLM_CPU_OMP_THREADS_BIND {mode!r} has CPUs for {len(lists)} ranks of a node, and this is number "
            f"{local_rank + 1}; give one list for each, separated by |"
        )
    return parse_id_list(lists[local_rank])
