"""The Ray cluster that workers run on: one that is there, or one of our own that ends with who started it."""

import contextlib
import os
import secrets
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_edsd.errors import UserError

try:
    import ray
    from ray.util.placement_group import placement_group, placement_group_table
except ImportError as error:
    raise UserError(f"Ray cannot be imported ({error}); pip install 'vllm-edsd[ray]'") from None

STORE_BYTES = 80 << 20  # about the least that Ray allows; weights and tokens do not pass through its object store
ANSWER_SECONDS = 10.0
WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Place:
    """Where a rank runs: the bundle of the placement group, that bundle's node, and the rank's number on the node."""

    bundle: int
    node: str
    local_rank: int


def join(ranks: int) -> bool:
    """Connects to the cluster that RAY_ADDRESS names; without it, or where it is "local", starts one for so many ranks.

    Returns whether it was started here, for `leave`. Raises UserError where the named cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS") or "local"
    with _signals_kept():
        if address == "local":
            _start(ranks)
        else:
            _connect(address)
    return address == "local"


def _start(ranks: int) -> None:
    if not any(name.startswith("RAY_AUTH_") for name in os.environ):
        # Otherwise Ray writes a token into the home directory, which a container may not let it.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    cpus = max(ranks, len(os.sched_getaffinity(0)))
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=STORE_BYTES)


def _connect(address: str) -> None:
    try:
        if address != "auto":
            # Ray itself tries for many minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        ray.init(address=address)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS {address!r} ({error}); give the host:port of one that runs, or unset it"
        ) from None


def leave(started: bool, group: Any) -> None:
    """Ends a cluster that `join` has started; one that was there goes on, and gets back what `reserve` took, if anything."""
    if started:
        ray.shutdown()
    elif group is not None and ray.is_initialized():
        ray.util.remove_placement_group(group)


def reserve(ranks: int) -> tuple[Any, int]:
    """A placement group with a bundle for each rank, and the CPUs in a bundle: as many as all ranks can have.

    Raises UserError where the cluster has too few, or does not give them within a minute.
    """
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    cpus = cpus_each(nodes, ranks)
    if not cpus:
        raise UserError(
            f"{ranks} ranks need a CPU each, and the Ray cluster has {sum(nodes):g} on {len(nodes)} nodes; "
            "give a smaller --tensor-parallel-size, or add nodes"
        )
    group = placement_group([{"CPU": cpus}] * ranks, strategy="PACK")
    if not group.wait(WAIT_SECONDS):
        ray.util.remove_placement_group(group)
        raise UserError(
            f"the Ray cluster does not give {ranks} ranks {cpus} CPUs each within {WAIT_SECONDS:.0f} seconds; "
            "see with `ray status` who holds them"
        )
    return group, cpus


def cpus_each(nodes: Sequence[float], ranks: int) -> int:
    """The most CPUs that each rank can have, none spread over two of the nodes with so many CPUs; 0 if there are too few."""
    sizes = range(int(max(nodes, default=0)), 0, -1)
    return next((size for size in sizes if sum(int(node // size) for node in nodes) >= ranks), 0)


def places(group: Any) -> list[Place]:
    """The place of each rank: those on this process's node come first, then node by node."""
    nodes = placement_group_table(group)["bundles_to_node_id"]
    here = ray.get_runtime_context().get_node_id()
    order = sorted(nodes, key=lambda bundle: (nodes[bundle] != here, nodes[bundle], bundle))
    seen: Counter[str] = Counter()
    found = []
    for bundle in order:
        found.append(Place(bundle, nodes[bundle], seen[nodes[bundle]]))
        seen[nodes[bundle]] += 1
    return found


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes over SIGTERM; afterwards it is again whose it was, so that the engine still ends in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
