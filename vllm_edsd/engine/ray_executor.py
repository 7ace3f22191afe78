"""Tensor-parallel workers on CPU through Ray, which vLLM's own Ray executor has for GPUs only.

Given as `--distributed-executor-backend vllm_edsd.engine.ray_executor.RayCPUExecutor`. Steps and answers go through vLLM's
message queues; Ray starts the workers, watches them and ends them.
"""

import contextlib
import threading
import weakref
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from vllm_edsd.engine import ray_cluster, serve

# vLLM's module cannot be read without Ray, which the line above is the one to miss.
import ray  # isort: skip
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # isort: skip
from vllm import envs
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
from vllm.v1.executor import ray_utils
from vllm.v1.executor.ray_env_utils import get_driver_env_vars
from vllm.v1.executor.ray_executor_v2 import RayExecutorV2, RayWorkerHandle

from vllm_edsd.engine.ray_worker import RayCPUWorker, unname

# Read when a process or its OpenMP starts, or when vLLM is imported; all others may follow.
AT_BIRTH = ("LD_PRELOAD", "MALLOC_", "OMP_", "KMP_", "VLLM_")


class RayCPUExecutor(RayExecutorV2):
    """Workers are actors on CPUs that are reserved for them; a worker that dies ends the engine."""

    def _init_executor(self) -> None:
        serve.check_ray()
        self.is_failed = self.shutting_down = False
        self.failure_callback = None
        self.ending = threading.RLock()
        self.ray_worker_handles: list[RayWorkerHandle] = []
        self.rpc_broadcast_mq: MessageQueue | None = None
        self.response_mqs: list[MessageQueue] = []
        self.group: Any = None
        self._get_parallel_sizes()
        self.started = ray_cluster.join(self.world_size)
        self._finalizer = weakref.finalize(self, self.shutdown)
        try:
            self._start_workers()
        except BaseException:
            self.shutdown()
            raise
        self.start_worker_monitor()
        self.output_rank = self._get_output_rank()

    def _start_workers(self) -> None:
        self.group, cpus = ray_cluster.reserve(self.world_size)
        places = ray_cluster.places(self.group)
        here = ray.get_runtime_context().get_node_id()
        self.rpc_broadcast_mq = MessageQueue(
            self.world_size,
            sum(place.node == here for place in places),
            max_chunk_bytes=envs.VLLM_MQ_MAX_CHUNK_BYTES_MB << 20,
            connect_ip=ray.util.get_node_ip_address(),
        )
        tasks = self.rpc_broadcast_mq.export_handle()
        inherited = get_driver_env_vars(ray_utils.WORKER_SPECIFIC_ENV_VARS)
        runtime_env = self._build_runtime_env()
        runtime_env["env_vars"] |= at_birth(inherited, cpus)
        for rank, place in enumerate(places):
            actor: Any = (
                ray.remote(RayCPUWorker)
                .options(
                    name=ray_utils.build_actor_name(self.vllm_config.instance_id, rank, self.world_size, 1, 1),
                    num_cpus=cpus,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, place.bundle),
                    runtime_env=runtime_env,
                )
                .remote(self.vllm_config, rank, tasks, self._is_driver_worker(rank), place.node == here)
            )
            self.ray_worker_handles.append(RayWorkerHandle(actor, rank, place.local_rank, place.node, place.bundle))
        on_node = Counter(place.node for place in places)
        self._call("bind", lambda worker: (worker.local_rank, on_node[worker.node_id]))
        meeting: Any = ray.get(self.ray_worker_handles[0].actor.create_dist_init_method.remote())
        # vLLM names its shared memory after what follows the last colon: ranks of different nodes must not think it theirs.
        self._call(
            "initialize_worker", lambda worker: (worker.local_rank, {}, f"{meeting}?node={worker.node_id}", inherited)
        )
        answers = self._call("wait_for_init", lambda _: ())
        self.response_mqs = [MessageQueue.create_from_handle(answer["handle"], 0) for answer in answers]
        # The workers subscribe inside `run`, and both kinds of queue wait for that.
        for worker in self.ray_worker_handles:
            worker.run()
        for queue in (self.rpc_broadcast_mq, *self.response_mqs):
            queue.wait_until_ready()
        unname(self.rpc_broadcast_mq)
        self.futures_queue = deque()

    def _call(self, method: str, arguments: Any) -> list[Any]:
        """Calls a method of every worker at once, each with its own arguments; returns what they return, by rank."""
        return ray.get([getattr(worker.actor, method).remote(*arguments(worker)) for worker in self.ray_worker_handles])

    def shutdown(self) -> None:
        """Ends the workers, whatever they are at, and the cluster if it was started here; a second call does nothing."""
        if not hasattr(self, "started"):
            return
        with self.ending:
            if self.shutting_down:
                return
            self.shutting_down = True
            for worker in self.ray_worker_handles:
                with contextlib.suppress(Exception):  # it is dead, or the cluster is
                    ray.kill(worker.actor)
            for queue in (self.rpc_broadcast_mq, *self.response_mqs):
                if queue is not None:
                    queue.shutdown()
            self.rpc_broadcast_mq, self.response_mqs = None, []
            self._join_monitor_thread()
            ray_cluster.leave(self.started, self.group)


def at_birth(environment: Mapping[str, str], cpus: int) -> dict[str, str]:
    """What of `environment` an actor with so many CPUs must have before its first line of Python runs."""
    born = {name: value for name, value in environment.items() if name.startswith(AT_BIRTH)}
    # OpenMP threads that wait for work sleep soon, or ranks of one node would take each other's time.
    return {"OMP_NUM_THREADS": str(cpus), "KMP_BLOCKTIME": "5", **born}
