"""vLLM's CPU worker with our proposer, and block verification where it is asked for, in its model runner (V1)."""

from pathlib import Path
from typing import Any

from vllm_edsd.engine import cpu_generators, undrafted
from vllm_edsd.engine.agreement import agreed
from vllm_edsd.engine.experts_worker import ExpertsCPUWorker
from vllm_edsd.engine.model_free import ModelFree
from vllm_edsd.engine.proposer import AdaptiveProposer
from vllm_edsd.engine.verification import BlockVerifier
from vllm_edsd.errors import UserError
from vllm_edsd.observability.watch import Watch
from vllm_edsd.policy import registry
from vllm_edsd.policy.record import Recorder


class AdaptiveCPUWorker(ExpertsCPUWorker):
    """Given as `--worker-cls`; its options are `additional_config["edsd"]`."""

    def init_device(self) -> None:
        super().init_device()
        runner: Any = self.model_runner
        config: Any = self.vllm_config
        options = config.additional_config["edsd"]
        parallel = config.parallel_config
        if parallel.world_size > parallel.tensor_parallel_size or parallel.decode_context_parallel_size > 1:
            raise ValueError(
                f"policy {options['policy']!r} works with tensor parallelism only, and {parallel.world_size} ranks share "
                "the model in other ways too; give policy='fixed'"
            )
        tally = self.tally

        def make_policy() -> Watch:
            most = config.speculative_config.num_speculative_tokens
            policy = registry.make(options["policy"], most, options["coefficients"], options["beside"] is not None)
            if options["record"]:
                policy = Recorder(policy, Path(options["record"]))
            return Watch(agreed(policy) if parallel.world_size > 1 else policy, tally)

        beside = ModelFree(options["beside"], config) if options["beside"] else None
        runner.drafter = AdaptiveProposer(config, runner.device, runner, make_policy, tally, beside)
        tally.watch("policy", lambda: runner.drafter.policy.refresh())
        cpu_generators.mend(runner)
        undrafted.ease(runner)
        if options["verification"] == "block":
            runner.rejection_sampler = BlockVerifier(runner.sampler, config.speculative_config, runner.device)

    def execute_model(self, scheduler_output: Any) -> Any:
        self.model_runner.drafter.scheduled(scheduler_output)  # type: ignore[union-attr]
        return super().execute_model(scheduler_output)

    def load_drafter(self, folder: str) -> dict[str, Any]:
        """Called by an administrator: drafts with the weights in `folder` from now on; what is in use, or `error`."""
        switch = self.model_runner.drafter.switch  # type: ignore[union-attr]
        try:
            switch.load(Path(folder))
        except UserError as error:
            return {"error": str(error)}
        return switch.state()

    def drafter_state(self) -> dict[str, Any]:
        """What `DrafterSwitch.state` says."""
        return self.model_runner.drafter.switch.state()  # type: ignore[union-attr]
