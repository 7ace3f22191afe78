"""Our metrics on vLLM's own /metrics: what the scheduler sees of every draft, with any model runner, and the way out."""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.multiprocess import MultiProcessCollector

from vllm_edsd.drafters.checkpoint import version
from vllm_edsd.observability.acceptance import AcceptanceWatch
from vllm_edsd.observability.exporter import SnapshotCollector
from vllm_edsd.observability.snapshots import DIRECTORY, Writer
from vllm_edsd.observability.tally import Tally


def open_directory() -> None:
    """In a server's first process: makes the directory of the snapshots, names it to all others, removes it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="vllm-edsd-metrics-"))
    os.environ[DIRECTORY] = str(directory)
    owner = os.getpid()

    def remove() -> None:
        # Processes forked from this one inherit the call.
        if os.getpid() == owner:
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)


def start(config: Any, place: str) -> Tally:
    """A tally that is exported, of the engine that `config` (vLLM's) is for; where nothing is exported it only counts."""
    model = config.model_config.served_model_name
    name = model[0] if isinstance(model, list) else model
    tally = Tally((str(name), str(config.parallel_config.data_parallel_index)))
    # Ranks see the same drafts: the first one tells.
    if os.environ.get(DIRECTORY) and config.parallel_config.rank == 0:
        Writer(tally, Path(os.environ[DIRECTORY]), place).start()
    return tally


def show_drafter(tally: Tally, folder: str) -> str:
    """Exports which drafter is in use: a directory's name, or that of a model-free proposer, and its version, returned."""
    found = version(Path(folder))  # reads all of the weights
    tally.replace("edsd:drafter_info", Path(folder).name, found)
    return found


def install() -> None:
    """Watches the scheduler and puts our figures on /metrics; calling it again changes nothing."""
    from vllm.v1.core.sched.scheduler import Scheduler

    if hasattr(Scheduler.__init__, "edsd"):
        return
    _watch(Scheduler)
    ours = SnapshotCollector(Path(os.environ[DIRECTORY]))
    REGISTRY.register(ours)
    # With several API servers the page is made of prometheus-client's own shared files, in a registry made for each scrape.
    collect = MultiProcessCollector.collect

    @functools.wraps(collect)
    def collect_all(self: Any) -> Iterator[Any]:
        yield from collect(self)
        yield from ours.collect()

    MultiProcessCollector.collect = collect_all  # type: ignore[method-assign]


def _watch(scheduler: Any) -> None:
    """Wraps the three places where vLLM's scheduler begins, learns what became of a draft, and lets a request go."""
    init, make_stats, free = scheduler.__init__, scheduler.make_spec_decoding_stats, scheduler._free_request

    @functools.wraps(init)
    def begin(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        init(self, vllm_config, *args, **kwargs)
        speculative = vllm_config.speculative_config
        options = (vllm_config.additional_config or {}).get("edsd", {})
        tally = start(vllm_config, "engine")
        self.edsd_acceptance = None
        if speculative is None:  # fewer experts alone
            return
        tally.put(
            "edsd:policy_info",
            1.0,
            *(options.get("policy", "fixed"), options.get("verification", "standard")),
            str(speculative.num_speculative_tokens),
        )
        if "policy" not in options:
            show_drafter(tally, options.get("proposer", speculative.model))
        self.edsd_acceptance = AcceptanceWatch(tally, speculative.num_speculative_tokens)

    @functools.wraps(make_stats)
    def make_spec_decoding_stats(
        self: Any,
        spec_decoding_stats: Any,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> Any:
        # A grammar's invalid tokens were never the drafter's; a preempted request's step may have none left.
        drafted = num_draft_tokens - (num_invalid_spec_tokens or {}).get(request_id, 0)
        if drafted and self.edsd_acceptance:
            self.edsd_acceptance.verified(request_id, drafted, num_accepted_tokens)
        return make_stats(
            self, spec_decoding_stats, num_draft_tokens, num_accepted_tokens, num_invalid_spec_tokens, request_id
        )

    @functools.wraps(free)
    def _free_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if self.edsd_acceptance:
            self.edsd_acceptance.finished(request.request_id)
        return free(self, request, *args, **kwargs)

    begin.edsd = True  # type: ignore[attr-defined]
    scheduler.__init__ = begin
    scheduler.make_spec_decoding_stats = make_spec_decoding_stats
    scheduler._free_request = _free_request
