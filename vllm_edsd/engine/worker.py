"""vLLM's CPU worker with our proposer in its model runner (V1)."""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_edsd.engine.proposer import AdaptiveProposer
from vllm_edsd.policy import registry


class AdaptiveCPUWorker(CPUWorker):
    """Given as `--worker-cls`; its options are `additional_config["edsd"]`."""

    def init_device(self) -> None:
        super().init_device()
        runner: Any = self.model_runner
        config: Any = self.vllm_config
        policy = registry.make(config.additional_config["edsd"]["policy"], config.speculative_config.num_speculative_tokens)
        runner.drafter = AdaptiveProposer(config, runner.device, runner, policy)

    def execute_model(self, scheduler_output: Any) -> Any:
        self.model_runner.drafter.scheduled(scheduler_output)  # type: ignore[union-attr]
        return super().execute_model(scheduler_output)
