"""Which implementation a kernel's public function takes: Triton where it runs, the naive reference everywhere else."""

import functools
import os

import torch

from vllm_edsd.errors import UserError

SWITCH = "EDSD_KERNELS"
CHOICES = ("auto", "naive")


@functools.cache
def _has_triton() -> bool:
    try:
        import triton  # noqa: F401 - only whether it can be imported
    except ImportError:
        return False
    return True


def use_triton(*tensors: torch.Tensor | None) -> bool:
    """True where all `tensors` are on a GPU, or TRITON_INTERPRET=1, and triton can be imported.

    EDSD_KERNELS=naive forces False. None stands for an argument that was not given.
    Raises UserError for another value of EDSD_KERNELS.
    """
    choice = os.environ.get(SWITCH) or "auto"
    if choice not in CHOICES:
        raise UserError(f"{SWITCH} is {choice!r}; give one of: {', '.join(CHOICES)}")
    if choice == "naive":
        return False
    runs = os.environ.get("TRITON_INTERPRET") == "1" or all(tensor.is_cuda for tensor in tensors if tensor is not None)
    return runs and _has_triton()
