"""What the hook is before it is trained: in each layer the best fit of rank r to what matters of the loss.

[ours] A row i of a layer counts by |g_i|, g_i [d] being the gradient of the divergence by the layer's output there under the
plan, and an error e [d] by e^T F e, F = sum g g^T: minimised is sum |g_i| (e_i - B A x_i)^T F (e_i - B A x_i), by the
singular vectors of the weighted ridge fit (reduced-rank regression; Izenman 1975).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vllm_edsd.experts.hook import Hook
from vllm_edsd.experts.kept import Kept, divergence, losing
from vllm_edsd.experts.lost import lost, regularised
from vllm_edsd.experts.plan import Mode
from vllm_edsd.experts.reduction import reduced

FLOOR = 1e-2  # of F's mean diagonal: directions without a gradient


def start(
    model: Any,
    kept: Sequence[Kept],
    counts: Mapping[int, int],
    mode: Mode,
    rank: int,
    report: Callable[[], None] = lambda: None,
) -> dict[int, Hook]:
    """By layer that the answers depend on (what the last makes of a prompt reaches nothing); `report()` after each text."""
    width = model.config.hidden_size
    sums = {layer.index: torch.zeros(3, width, width) for layer in losing(model, counts)}
    for item in kept:
        gradients = _gradients(model, item, counts, mode)
        for index, inputs, errors in lost(model, item, counts, mode):
            gradient = gradients[index]
            weighted = gradient.norm(dim=1, keepdim=True) * inputs
            sums[index] += torch.stack([inputs.T @ weighted, weighted.T @ errors, gradient.T @ gradient])
        report()
    return {index: _fit(found, rank) for index, found in sums.items() if found[2].any()}


def _gradients(model: Any, item: Kept, counts: Mapping[int, int], mode: Mode) -> dict[int, torch.Tensor]:
    """float32 [n, d] by layer: of the divergence under the plan by the blocks' outputs at the reduced rows."""
    layers, rows = losing(model, counts), item.text.rows(mode)
    added: dict[int, torch.Tensor] = {}

    def add(index: int) -> Any:
        def hook(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
            added[index] = torch.zeros(output.shape, requires_grad=True)
            return output + added[index].to(output.dtype)

        return hook

    handles = [layer.block.register_forward_hook(add(layer.index)) for layer in layers]
    try:
        with reduced(layers, counts, rows):
            gradients = torch.autograd.grad(divergence(model, item), list(added.values()))
    finally:
        for handle in handles:
            handle.remove()
    return {index: gradient[rows] for index, gradient in zip(added, gradients, strict=True)}


def _fit(sums: torch.Tensor, rank: int) -> Hook:
    gram, cross, metric = regularised(sums[0]), sums[1], sums[2]
    fit = torch.linalg.solve(gram, cross)  # x W
    metric = metric + FLOOR * metric.diagonal().mean() * torch.eye(len(metric))
    inner, outer = torch.linalg.cholesky(gram), torch.linalg.cholesky(metric)
    kept = torch.linalg.svd(inner.T @ fit @ outer)[2][:rank]
    down = (fit @ outer @ kept.T).T
    up = torch.linalg.solve_triangular(outer, kept, upper=False, left=False).T
    return Hook(down.contiguous(), up.contiguous())
