"""The repair module (HookMoE): Hook(x) = x + B act(A x), put before an MoE block whose router then sees the hooked x too."""

import torch
from torch import nn
from torch.nn import functional as F


class Hook(nn.Module):
    """A [r, d] and B [d, r]; B is zero at first, so that an untrained hook changes nothing. `act` is SiLU."""

    def __init__(self, hidden: int, rank: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.randn(rank, hidden, generator=generator) / hidden**0.5)
        self.up = nn.Parameter(torch.zeros(hidden, rank))

    def forward(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """x [..., d] with the repair where `rows` [...], of x's dtype, is 1 and without where it is 0."""
        return x + rows[..., None] * F.linear(F.silu(F.linear(x, self.down.to(x.dtype))), self.up.to(x.dtype))
