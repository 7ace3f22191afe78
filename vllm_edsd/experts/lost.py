"""What a layer's output loses with its experts: pairs of what it was given and what is missing, to fit a repair to."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vllm_edsd.experts.kept import Kept, losing
from vllm_edsd.experts.plan import Mode
from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.replay import go_on

RIDGE = 0.1  # of the mean square of x's dimensions


@torch.no_grad()
def lost(model: Any, item: Kept, counts: Mapping[int, int], mode: Mode) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """By layer that loses experts, in order: x and y_full - y_k float32 [n, d] of the reduced rows, in the whole model."""
    layers, rows = losing(model, counts), item.text.rows(mode)
    states: list[tuple[torch.Tensor, torch.Tensor]] = []
    handles = [
        layer.block.register_forward_hook(lambda _, args, output: states.append((args[0], output))) for layer in layers
    ]
    try:
        go_on(model, item.passed, layers[0].index)
    finally:
        for handle in handles:
            handle.remove()
    for layer, (x, full) in zip(layers, states, strict=True):
        with reduced([layer], counts, rows):
            fewer = layer.block(x)
        yield layer.index, x[rows].float(), (full - fewer)[rows].float()


def regularised(gram: torch.Tensor) -> torch.Tensor:
    """X^T X [d, d] as ridge regression has it."""
    return gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
