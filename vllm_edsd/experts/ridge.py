"""The baseline that repairs every layer by a linear fit: y_full - y_k = x W, W by ridge regression."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vllm_edsd.experts.plan import Mode
from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.routed import RoutedLayer, routed_layers
from vllm_edsd.experts.texts import Text

RIDGE = 1e-2  # of the mean square of x's dimensions


@torch.inference_mode()
def fit(model: Any, texts: Sequence[Text], counts: Mapping[int, int], mode: Mode) -> dict[int, torch.Tensor]:
    """W float32 [d, d] by layer, on the states that the whole model gives the layers."""
    layers = [layer for layer in routed_layers(model) if counts[layer.index] < layer.top_k]
    width = model.config.hidden_size
    grams = {layer.index: torch.zeros(width, width) for layer in layers}
    crosses = {layer.index: torch.zeros(width, width) for layer in layers}
    for text in texts:
        rows = text.rows(mode)
        for layer, (x, full) in zip(layers, _states(model, layers, text), strict=True):
            with reduced([layer], counts, rows):
                fewer = layer.block(x)
            inputs, errors = x[rows].float(), (full - fewer)[rows].float()
            grams[layer.index] += inputs.T @ inputs
            crosses[layer.index] += inputs.T @ errors
    fits = {}
    for index, gram in grams.items():
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        fits[index] = torch.linalg.solve(gram, crosses[index])
    return fits


def _states(model: Any, layers: Sequence[RoutedLayer], text: Text) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each MoE block is given and gives, [1, T, d] both."""
    states: list[tuple[torch.Tensor, torch.Tensor]] = []
    handles = [
        layer.block.register_forward_hook(lambda _, args, output: states.append((args[0], output))) for layer in layers
    ]
    model.model(text.tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return states
