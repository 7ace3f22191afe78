"""What needs no cluster: who gets which CPUs, what an actor is born with, and what is said where Ray cannot be used."""

import builtins
import os
import sys

import pytest
from vllm.utils.cpu_resource_utils import LogicalCPUInfo

from vllm_edsd.engine import hooks, ray_cluster, ray_worker, serve
from vllm_edsd.engine.ray_executor import RayCPUExecutor, at_birth
from vllm_edsd.errors import UserError

ASKED = {"distributed_executor_backend": serve.RAY_EXECUTOR}


@pytest.mark.parametrize(
    ("nodes", "ranks", "cpus"),
    [([2.0], 2, 1), ([64.0], 2, 32), ([8.0, 8.0], 2, 8), ([8.0, 4.0], 2, 4), ([8.0, 2.0], 3, 2), ([1.0], 2, 0), ([], 1, 0)],
)
def test_every_rank_has_as_many_cpus_as_all_can_have(nodes, ranks, cpus):
    assert ray_cluster.cpus_each(nodes, ranks) == cpus


def machine(cores, threads=1, nodes=1):
    """The CPUs of a machine, numbered as Linux does: first of every core the one, then the other."""
    return [
        LogicalCPUInfo(id=thread * cores + core, physical_core=core, numa_node=core * nodes // cores)
        for thread in range(threads)
        for core in range(cores)
    ]


def test_shares_are_cores_of_a_rank_s_own():
    assert [ray_worker.share(machine(2), rank, 2) for rank in range(2)] == [[0], [1]]
    shares = [ray_worker.share(machine(8, threads=2, nodes=2), rank, 2) for rank in range(2)]
    assert shares == [[8, 9, 10], [12, 13, 14]]
    assert ray_worker.share(machine(1), 1, 2) == []


def test_a_list_for_each_rank():
    assert [ray_worker.listed("0-2|5,7", rank) for rank in range(2)] == [[0, 1, 2], [5, 7]]
    with pytest.raises(ValueError, match="has CPUs for 1 ranks of a node, and this is number 2"):
        ray_worker.listed("0-2", 1)


def test_what_an_actor_is_born_with():
    ours = {"LD_PRELOAD": "/lib/a.so", "MALLOC_TRIM_THRESHOLD_": "1", "VLLM_EDSD_ACTIVE": "1"}
    assert at_birth({**ours, "HOME": "/home/me"}, 4) == {**ours, "OMP_NUM_THREADS": "4", "KMP_BLOCKTIME": "5"}
    assert at_birth({"OMP_NUM_THREADS": "2"}, 4)["OMP_NUM_THREADS"] == "2"


def test_nothing_is_in_the_way(monkeypatch):
    monkeypatch.setattr(serve, "is_cpu", lambda: True)
    monkeypatch.setattr(serve, "runner", lambda: ("V1", "V2 needs Triton"))
    assert f"{RayCPUExecutor.__module__}.{RayCPUExecutor.__name__}" == serve.RAY_EXECUTOR
    assert serve.place({**ASKED, "tensor_parallel_size": 2}).worker is None


def test_without_ray(monkeypatch):
    real = builtins.__import__

    def absent(name, *arguments, **keywords):
        if name.partition(".")[0] == "ray":
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "vllm_edsd.engine.ray_cluster")
    monkeypatch.delattr("vllm_edsd.engine.ray_cluster")
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"Ray cannot be imported.*pip install 'vllm-edsd\[ray\]'"):
        serve.place(ASKED)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer(address, monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, "RAY_ADDRESS": address})
    with pytest.raises(UserError, match=f"no Ray cluster answers at RAY_ADDRESS '{address}'.*or unset it"):
        ray_cluster.join(2)


def test_on_another_backend(monkeypatch):
    monkeypatch.setattr(serve, "is_cpu", lambda: False)
    monkeypatch.setattr(serve, "backend", lambda: "cuda")
    with pytest.raises(UserError, match=r"backend here is cuda; give --distributed-executor-backend ray"):
        serve.place(ASKED)


def test_with_a_changed_vllm(monkeypatch):
    changed = hooks.Hook(hooks.RAY_EXECUTOR, "RayWorkerProc.run", ("self", "forever"))
    monkeypatch.setattr(hooks, "RAY", (*hooks.RAY, changed))
    with pytest.raises(UserError, match=r"has changed .*RayWorkerProc\.run"):
        serve.check_ray()
