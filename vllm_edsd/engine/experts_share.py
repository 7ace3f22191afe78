"""How much of a prefill the routed experts take, in vLLM: what fewer of them can save at most."""

import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

ROUNDS = 5


def watch(model: Any) -> list[float]:
    """A list to which every call of a layer's routed experts, shared ones apart, appends its seconds; on a CPU only."""
    spent: list[float] = []
    for module in model.modules():
        if isinstance(module, MoERunner):
            experts: Any = module.routed_experts
            experts.forward_modular = _timed(experts.forward_modular, spent)
    return spent


def _timed(function: Any, spent: list[float]) -> Any:
    def timed(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - begun)

    return timed


def prefill(llm: Any, prompts: Sequence[list[int]]) -> float:
    """Seconds to read `prompts` (token ids) and write one token after each."""
    from vllm import SamplingParams, TokensPrompt

    params = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
    asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
    begun = time.perf_counter()
    llm.generate(asked, params, use_tqdm=False)
    return time.perf_counter() - begun


def engine(target: Path, dtype: str, prompts: Sequence[list[int]], **options: Any) -> Any:
    """An engine in this process that reads all `prompts` in one step, without prefix caching."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    return LLM(
        str(target),
        dtype=dtype,  # type: ignore[arg-type]
        max_model_len=max(map(len, prompts)) + 8,
        max_num_seqs=len(prompts),
        max_num_batched_tokens=sum(map(len, prompts)),
        kv_cache_memory_bytes=1 << 29,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **options,
    )


def worker(llm: Any) -> Any:
    """The worker of an `engine`."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker


def experts_share(target: Path, dtype: str, prompts: Sequence[list[int]]) -> float:
    """The routed experts' share of the time that the whole target takes to read `prompts`: the median of a few rounds."""
    llm = engine(target, dtype, prompts)
    spent = watch(worker(llm).model_runner.get_model())
    shares = []
    for _ in range(ROUNDS + 1):
        spent.clear()
        took = prefill(llm, prompts)
        shares.append(sum(spent) / took)
    return statistics.median(shares[1:])
