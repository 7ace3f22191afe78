"""Answers calls of `vllm_edsd.kernels` in a process of its own: python worker.py MODE, pickles on stdin and stdout.

Triton decides when it is imported whether it interprets, and other tests of the same pytest run import it first. In both
modes the public functions take their Triton path on CPU tensors, and fresh tensors are full of NaN.

    interpret   Triton's interpreter; the answer is the result
    compile     every kernel launched is built for a Hopper GPU and none runs; the answer is their shared memory in bytes
"""

import contextlib
import importlib
import os
import pickle
import sys
import traceback
from unittest import mock

import torch


def compile_only() -> dict[str, int]:
    """Makes a launch compile and stop; fills the returned dictionary."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Hopper:
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    driver.set_active(Hopper())
    for noun in ("block_verify", "budget", "draft_stats", "head_soft_ce", "soft_ce"):
        importlib.import_module(f"vllm_edsd.kernels.{noun}").use_triton = lambda *tensors: True
    built: dict[str, int] = {}
    run = JITFunction.run

    def build(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        assert kernel.asm["cubin"]
        built[self.__name__] = kernel.metadata.shared

    JITFunction.run = build
    return built


def call(module: str, arguments: list, upstream: torch.Tensor | None, constants: dict[str, int]):
    """The result, and with `upstream` the gradients of (the first) result in every argument that wants one."""
    changed = (
        mock.patch.multiple(f"vllm_edsd.kernels.{module}_triton", **constants) if constants else contextlib.nullcontext()
    )
    with changed:
        result = getattr(importlib.import_module(f"vllm_edsd.kernels.{module}"), module)(*arguments)
    if upstream is None:
        return tuple(result) if isinstance(result, tuple) else result
    first = result[0] if isinstance(result, tuple) else result
    wanted = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    gradients = torch.autograd.grad(first, wanted, upstream)
    return first.detach(), gradients


def serve(mode: str) -> None:
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    # Torch's own poison: every torch.empty is filled with NaN, or the largest integer.
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    built = compile_only() if mode == "compile" else None
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = call(*request)
            reply = ("ok", answer if built is None else dict(built))
        except Exception as error:
            reply = (type(error).__name__, traceback.format_exc())
        pickle.dump(reply, answers)
        answers.flush()


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET", "0") == str(int(sys.argv[1] == "interpret"))
    serve(sys.argv[1])
