"""The baseline that repairs every layer by a linear fit: y_full - y_k = W x, W by ridge regression."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vllm_edsd.experts.hook import Hook
from vllm_edsd.experts.kept import Kept, losing
from vllm_edsd.experts.lost import lost, regularised
from vllm_edsd.experts.plan import Mode


def fit(
    model: Any,
    kept: Sequence[Kept],
    counts: Mapping[int, int],
    mode: Mode,
    report: Callable[[], None] = lambda: None,
) -> dict[int, Hook]:
    """Of full rank by layer, on the states that the whole model gives the layers; `report()` after each text."""
    width = model.config.hidden_size
    sums = {layer.index: torch.zeros(2, width, width) for layer in losing(model, counts)}
    for item in kept:
        for index, inputs, errors in lost(model, item, counts, mode):
            sums[index] += torch.stack([inputs.T @ inputs, inputs.T @ errors])
        report()
    return {
        index: Hook(torch.linalg.solve(regularised(gram), cross).T.contiguous(), torch.eye(width))
        for index, (gram, cross) in sums.items()
    }
