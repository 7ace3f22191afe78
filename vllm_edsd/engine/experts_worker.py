"""vLLM's CPU worker on an MoE target with fewer experts per token."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.logger import init_logger
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_edsd.engine import experts, observer
from vllm_edsd.experts.usage import Usage
from vllm_edsd.observability.tally import Tally

logger = init_logger(__name__)
TOKENS = {"prefill": "the prompts' tokens but the last", "all": "all tokens"}


class ExpertsCPUWorker(CPUWorker):
    """Given as `--worker-cls`; its options are `additional_config["edsd"]["experts"]`, which may be absent."""

    tally: Tally
    rows: experts.Rows
    usage: Usage

    def init_device(self) -> None:
        super().init_device()
        self.tally = observer.start(self.vllm_config, "worker")

    def load_model(self, **kwargs: Any) -> None:
        super().load_model(**kwargs)
        config: Any = self.vllm_config
        settings = config.additional_config["edsd"].get("experts")
        if settings is None:
            return
        runner: Any = self.model_runner
        model = runner.get_model()
        rows, usage = experts.install(model, config, Path(settings["plan"]), settings["mode"])
        forward = runner._model_forward

        def model_forward(*args: Any, **kwargs: Any) -> Any:
            rows.set(torch.from_numpy(before_answer(runner)))
            try:
                return forward(*args, **kwargs)
            finally:
                rows.set(None)

        runner._model_forward = model_forward
        self.rows, self.usage = rows, usage
        self.tally.watch("experts", lambda: show(self.tally, usage))
        announce(self.tally, settings)

    def expert_usage(self) -> dict[int, list[float]]:
        """What `Usage.read` says, by layer."""
        return self.usage.read()


def announce(tally: Tally, settings: Mapping[str, Any]) -> None:
    """Says in the log and in the metrics that the target's text is not the whole target's."""
    plan, mode = settings["plan"], settings["mode"]
    tally.put("edsd:lossy_experts_info", 1.0, Path(plan).name, mode, settings["fingerprint"])
    logger.warning(
        "LOSSY: by plan %s this target uses %s of its experts per token for %s; its text is not the whole target's",
        plan,
        f"{settings['share']:.0%}",
        TOKENS[mode],
    )
    if mode != settings["measured_for"]:
        logger.warning("plan %s was measured for %s and is used for %s", plan, settings["measured_for"], mode)


def before_answer(runner: Any) -> np.ndarray:
    """bool [tokens]: which of the step's tokens stand in their request's prompt and not at its end, which begins the answer.

    Told by model runner V1's own arrays.
    """
    batch = runner.input_batch
    starts = runner.query_start_loc.np[: batch.num_reqs + 1]
    counts = np.diff(starts)
    first = np.repeat(batch.num_computed_tokens_cpu[: batch.num_reqs] - starts[:-1], counts)
    return np.arange(starts[-1]) + first < np.repeat(batch.num_prompt_tokens[: batch.num_reqs] - 1, counts)


def show(tally: Tally, usage: Usage) -> None:
    """Exports the sums; `routing` is "model" for what the whole target would use and "served" for what it did."""
    for layer, (tokens, before, after, distinct_before, distinct_after, steps) in usage.read().items():
        tally.total("edsd:moe_tokens", tokens, str(layer))
        tally.total("edsd:moe_steps", steps, str(layer))
        tally.total("edsd:activated_experts", before, str(layer), "model")
        tally.total("edsd:activated_experts", after, str(layer), "served")
        tally.total("edsd:distinct_experts", distinct_before, str(layer), "model")
        tally.total("edsd:distinct_experts", distinct_after, str(layer), "served")
