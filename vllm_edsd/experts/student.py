"""The MoE being distilled: the dense model with each MLP's neurons switched expert by expert, and what of it is trained.

All neurons are computed and those of experts a token is not routed to are multiplied by zero: on dense hardware that trains
faster than gathering tokens by expert, and it is the same function.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vllm_edsd.experts.carve import Carving

MATRICES = ("gate_proj", "up_proj", "down_proj")


class LowRank(nn.Module):
    """A frozen matrix W plus a trained change: y = W x + B A x. `down` is A [r, in], `up` is B [out, r], zero at first."""

    def __init__(self, weight: torch.Tensor, rank: int, generator: torch.Generator):
        super().__init__()
        self.weight = nn.Buffer(weight.clone(), persistent=False)
        out, into = weight.shape
        self.down = nn.Parameter(torch.randn(rank, into, generator=generator) / into**0.5)
        self.up = nn.Parameter(torch.zeros(out, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype)) + F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


class CarvedMlp(nn.Module):
    """One layer: shared neurons always, routed experts by the router's `top_k`, weighted E * softmax.

    With near-uniform routing and all experts that is the dense MLP. Over tokens [B, T, d].
    """

    def __init__(self, mlp: Any, order: torch.Tensor, router: torch.Tensor, shared: int, top_k: int, rank: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.gate_proj = LowRank(mlp.gate_proj.weight[order], rank, generator)
        self.up_proj = LowRank(mlp.up_proj.weight[order], rank, generator)
        self.down_proj = LowRank(mlp.down_proj.weight[:, order], rank, generator)
        self.router = nn.Parameter(router.clone())
        self.shared = shared
        self.top_k = top_k
        self.act_fn = mlp.act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        experts = len(self.router)
        logits = F.linear(x.float(), self.router)
        shares = logits.softmax(-1)
        chosen = torch.zeros_like(shares).scatter_(-1, shares.topk(self.top_k, dim=-1).indices, 1.0)
        weights = (experts * shares * chosen).to(x.dtype)
        neurons = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        common, routed = neurons[..., : self.shared], neurons[..., self.shared :]
        routed = (routed.unflatten(-1, (experts, -1)) * weights[..., None]).flatten(-2)
        return self.down_proj(torch.cat([common, routed], dim=-1))


def student(dense: Any, carving: Carving, shared: int, top_k: int, rank: int, seed: int) -> nn.Module:
    """Replaces the MLPs of `dense` in place; what is to be trained has requires_grad, the rest has not."""
    dense.requires_grad_(False)
    for place, layer in enumerate(dense.model.layers):
        layer.mlp = CarvedMlp(layer.mlp, carving.order[place], carving.routers[place], shared, top_k, rank, seed + place)
    return dense
