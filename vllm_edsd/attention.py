"""Which of PyTorch's attention kernels may be chosen."""

import torch


def without_plans() -> None:
    """Keeps PyTorch from cuDNN's attention, which plans anew for every shape: on an H200 8 ms forwards, 48 ms backwards.

    Where every batch has a shape of its own that is most of a training step. Process-wide; nothing changes on CPU.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
