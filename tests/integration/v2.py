"""vLLM's model runner V2 without a GPU: on its CPU backend, its Triton kernels interpreted, no CUDA graphs.

`engine` makes one with our worker for GPUs, as far as that is the same on a CPU. Import this before vLLM.
"""

import os
import time
from types import SimpleNamespace

os.environ |= {
    "TRITON_INTERPRET": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
import torch
import triton.backends

# vLLM looks for the CPU build of Triton; for the interpreter any will do.
triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)


class Event:
    """A CUDA event where everything has happened when it is recorded."""

    def __init__(self, **_):
        self.at = None

    def record(self, *_):
        self.at = time.perf_counter()

    def query(self):
        return self.at is not None

    def synchronize(self):
        pass

    def wait(self, *_):
        pass

    def elapsed_time(self, later):
        return (later.at - self.at) * 1e3


def engine(target, drafter=None, **options):
    """(LLM, its worker). `options`: `speculative` for `speculative_config`, `adaptive` for our worker, others vLLM's."""
    speculative, adaptive = options.pop("speculative", {}), options.pop("adaptive", False)
    from vllm import LLM
    from vllm.config import VllmConfig
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.worker import cpu_worker  # puts placeholders in the place of CUDA's events
    from vllm.v1.worker.gpu import model_runner
    from vllm.v1.worker.gpu.spec_decode import adaptive_verification

    import vllm_edsd
    from vllm_edsd.engine.v2 import worker as v2

    torch.cuda.Event = Event
    # What vLLM demands of adaptive verification for the sake of CUDA graphs. Here the device's lengths are the CPU's.
    VllmConfig._validate_adaptive_verification = lambda self: None
    CPUAttentionBackend.supports_device_cpu_query_lens_mismatch = classmethod(lambda cls: True)
    adaptive_verification.get_varlen_cudagraph_unsupported_backend = lambda *_, **__: None
    model_runner.resolve_adaptive_cudagraph_mode = lambda mode, **_: mode

    class Worker(v2.Adaptive, cpu_worker.CPUWorker):
        pass

    v2.InterpretedWorker = Worker
    arguments = {} if drafter is None else vllm_edsd.options(drafter, policy="fixed", num_tokens=options.pop("num_tokens"))
    if drafter is not None:
        arguments["speculative_config"] |= speculative
    if adaptive:
        arguments["speculative_config"] |= {"enable_adaptive_verification": True, "use_local_argmax_reduction": False}
        arguments["worker_cls"] = "vllm_edsd.engine.v2.worker.InterpretedWorker"
    llm = LLM(str(target), enforce_eager=True, skip_tokenizer_init=True, **arguments, **options)
    return llm, llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
