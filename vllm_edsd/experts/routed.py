"""The MoE layers of a transformers model, whatever the family: which there are, and a hold on each one's routing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vllm_edsd.errors import UserError


@dataclasses.dataclass(frozen=True)
class RoutedLayer:
    """`block` takes the normed state [B, T, d]; `router` picks `top_k` of `experts`, whose weights it may renormalise."""

    index: int
    layer: nn.Module
    block: nn.Module
    router: nn.Module
    top_k: int
    experts: int
    renormalises: bool

    def on_routing(self, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
        """Replaces the weights [tokens, top_k] by `change(weights, ids)` at every call; the handle returned ends it."""

        def hook(_: nn.Module, __: Any, output: tuple) -> tuple:
            # Granite's router says (ids, weights, logits), the others (logits, weights, ids).
            weights = output[1]
            ids = output[0] if not output[0].is_floating_point() else output[2]
            return (output[0], change(weights, ids), output[2])

        return self.router.register_forward_hook(hook)


def routed_layers(model: Any) -> list[RoutedLayer]:
    """The MoE layers of a transformers causal language model, in order. Raises UserError where there are none."""
    config = model.config
    found = []
    for index, layer in enumerate(model.model.layers):
        block: Any = getattr(layer, "mlp", None) or getattr(layer, "block_sparse_moe", None)
        router: Any = getattr(block, "gate", None) or getattr(block, "router", None)
        if router is None or not hasattr(router, "top_k"):
            continue
        # Mixtral and Granite always renormalise and have no such setting.
        renormalises = bool(getattr(config, "norm_topk_prob", True))
        found.append(RoutedLayer(index, layer, block, router, router.top_k, router.num_experts, renormalises))
    if not found:
        raise UserError(
            f"{type(model).__name__} has no MoE layers whose routing is known here; a sparse MoE model is needed"
        )
    return found
