"""A dense SwiGLU model's MLP neurons, split into a shared expert and routed experts.

Shared are the neurons that are most often among a token's strongest; the others are grouped by whether they are strong for
the same tokens (balanced k-means), and a router is fitted that predicts each group's energy from the layer's input. Cloned
experts would add up to one function, so that fewer of them change nothing; these are different neurons.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

STRONG = 0.1  # share of a layer's neurons that count as strong for a token
FEATURES = 128
ROUNDS = 6
RIDGE = 1e-2
# Routing starts near uniform, so that all experts together are the dense MLP.
SOFTNESS = 0.02


@dataclasses.dataclass(frozen=True)
class Carving:
    """`order` int64 [L, I]: each layer's neurons, shared ones first, then expert by expert; `routers` float32 [L, E, d]."""

    order: torch.Tensor
    routers: torch.Tensor


@torch.inference_mode()
def carve(
    model: Any, rows: torch.Tensor, experts: int, shared: int, seed: int, report: Callable[[], None] = lambda: None
) -> Carving:
    """How the MLPs of a Llama-like `model` split, by what they do on `rows` int64 [n, length]. `report()` after each layer.

    Raises ValueError where the neurons that are not shared do not divide into `experts`.
    """
    layers = model.model.layers
    width = layers[0].mlp.down_proj.in_features
    if (width - shared) % experts:
        raise ValueError(f"{width} - {shared} shared neurons do not divide into {experts} experts")
    inputs: dict[int, list[torch.Tensor]] = {place: [] for place in range(len(layers))}
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args, place=place: inputs[place].append(args[0].flatten(0, 1)))
        for place, layer in enumerate(layers)
    ]
    for row in rows.split(8):
        model.model(row, use_cache=False)
    for hook in hooks:
        hook.remove()
    orders, routers = [], []
    for place, layer in enumerate(layers):
        states = torch.cat(inputs.pop(place))
        order, router = _layer(layer.mlp, states, experts, shared, seed + place)
        orders.append(order)
        routers.append(router)
        report()
    return Carving(torch.stack(orders), torch.stack(routers))


def _layer(mlp: Any, states: torch.Tensor, experts: int, shared: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    energy = (mlp.act_fn(mlp.gate_proj(states)) * mlp.up_proj(states)).float().abs() * mlp.down_proj.weight.float().norm(
        dim=0
    )
    count = round(STRONG * energy.shape[1])
    strong = torch.zeros_like(energy).scatter_(1, energy.topk(count, dim=1).indices, 1.0)
    ranked = strong.mean(0).argsort(descending=True, stable=True)
    common, rest = ranked[:shared].sort().values, ranked[shared:].sort().values
    groups = _cluster(strong[:, rest], experts, seed)
    order = torch.cat([common, *(rest[groups == group] for group in range(experts))])
    loads = torch.stack([energy[:, rest[groups == group]].square().sum(1) for group in range(experts)], dim=1)
    return order, _router(states.float(), loads)


def _cluster(strong: torch.Tensor, groups: int, seed: int) -> torch.Tensor:
    """int64 [N]: the group of each neuron (a column of `strong`), groups of equal size."""
    generator = torch.Generator().manual_seed(seed)
    centred = strong - strong.mean(0)
    centred /= centred.norm(dim=0).clamp_min(1e-6)
    projection = torch.randn(FEATURES, len(centred), generator=generator) / FEATURES**0.5
    points = nn.functional.normalize(projection @ centred, dim=0).T
    size = len(points) // groups
    centres = points[torch.randperm(len(points), generator=generator)[:groups]]
    for _ in range(ROUNDS):
        cost = -(points @ centres.T).numpy()
        _, seats = linear_sum_assignment(np.repeat(cost, size, axis=1))
        found = torch.from_numpy(seats // size)
        centres = torch.stack([points[found == group].mean(0) for group in range(groups)])
    return found


def _router(states: torch.Tensor, loads: torch.Tensor) -> torch.Tensor:
    """float32 [E, d]: ridge regression from the input to each expert's log energy, centred per token."""
    wanted = loads.clamp_min(1e-9).log()
    wanted = wanted - wanted.mean(1, keepdim=True)
    gram = states.T @ states
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    return SOFTNESS * torch.linalg.solve(gram, states.T @ wanted).T.contiguous()
