"""vLLM's GPU worker (model runner V2) with policy evict: its adaptive verification, and what `Adaptation` adds to it."""

from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from vllm_edsd.engine import observer
from vllm_edsd.engine.v2.adaptation import Adaptation


class Adaptive:
    """Mixed into a worker of vLLM's, before it."""

    adaptation: Adaptation

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Also takes over adaptive verification, before it is profiled."""
        worker: Any = super()
        worker.initialize_from_config(kv_cache_config)
        config = self.vllm_config  # type: ignore[attr-defined]
        tally = observer.start(config, "worker")
        observer.show_drafter(tally, config.speculative_config.model)
        self.adaptation = Adaptation(self.model_runner, config, tally)  # type: ignore[attr-defined]

    def execute_model(self, scheduler_output: Any) -> Any:
        """Begins a step."""
        self.adaptation.begin(scheduler_output)
        worker: Any = super()
        return worker.execute_model(scheduler_output)


class AdaptiveGPUWorker(Adaptive, Worker):
    """Given as `--worker-cls`."""
