"""The processes of a data-parallel run under torchrun; one process alone is the same with nothing to exchange.

Each takes its share of every batch's samples, and gradients are added, so that the step is that of one process.
"""

import datetime
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import distributed

PATIENCE = datetime.timedelta(days=1)  # the others wait while the first collects hidden states


class Ranks:
    """This process's `rank` among `count`."""

    def __init__(self, rank: int = 0, count: int = 1):
        self.rank, self.count = rank, count

    @classmethod
    def join(cls) -> "Ranks":
        """The run that torchrun started this process in, by its environment: nccl on CUDA, gloo on CPU."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each tensor, float32, by its sum over the processes, bit for bit the same in all."""
        if self.count > 1:
            buffer = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(buffer)
            for tensor, part in zip(tensors, buffer.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def copy(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replaces each tensor by the first process's."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, 0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        found: list[Any] = [value]
        if self.count > 1:
            found = [None] * self.count
            distributed.all_gather_object(found, value)
        return found

    def leave(self) -> None:
        """Ends this process's part in the run."""
        if self.count > 1:
            distributed.destroy_process_group()
