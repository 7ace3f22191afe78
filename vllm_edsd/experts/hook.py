"""The repair module, after HookMoE: in each layer that lost experts, B A x beside its MoE block; trained as one.

The paper's stands before one block and is not known in detail; before a block, where its router sees x + B act(A x), a
twentieth of the loss came back, beside the blocks three tenths (docs/results/experts.md) [ours].
"""

import torch
from torch import nn
from torch.nn import functional as F


class Hook(nn.Module):
    """One layer's part: `down` A [r, d] and `up` B [d, r]; the block's y becomes y + B A x, x being what it was given."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor):
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What to add to y, as x [..., d]."""
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
