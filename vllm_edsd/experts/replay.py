"""A model's forward pass from any layer on, from states kept of an earlier pass."""

import dataclasses
from typing import Any

import torch
from torch import nn


@dataclasses.dataclass(frozen=True)
class Pass:
    """`inputs[l]` [1, T, d] is what layer l was given, `inputs[L]` what the final norm was; `arguments[l]` what else."""

    inputs: list[torch.Tensor]
    arguments: list[dict[str, Any]]


def record(model: Any, tokens: torch.Tensor) -> Pass:
    """One forward pass of a transformers causal model over `tokens` int64 [1, T]."""
    inputs: list[torch.Tensor] = []
    arguments: list[dict[str, Any]] = []

    def layer_hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs.append(args[0] if args else kwargs.pop("hidden_states"))
        arguments.append({name: value for name, value in kwargs.items() if name != "past_key_values"})

    def norm_hook(_: nn.Module, args: tuple) -> None:
        inputs.append(args[0])

    handles = [layer.register_forward_pre_hook(layer_hook, with_kwargs=True) for layer in model.model.layers]
    handles.append(model.model.norm.register_forward_pre_hook(norm_hook))
    try:
        model.model(tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Pass(inputs, arguments)


def go_on(model: Any, passed: Pass, layer: int, copies: int = 1) -> torch.Tensor:
    """The final norm's input [copies, T, d] from the kept input of `layer`, through whatever the layers do now."""
    state = passed.inputs[layer].expand(copies, -1, -1)
    for place in range(layer, len(model.model.layers)):
        output = model.model.layers[place](state, **passed.arguments[place])
        state = output[0] if isinstance(output, tuple) else output
    return state


def predictions(model: Any, state: torch.Tensor, where: slice) -> torch.Tensor:
    """Log-probabilities float32 [n, V] at the positions `where` of a final norm's input [1, T, d]."""
    logits = model.lm_head(model.model.norm(state[:, where]))[0].float()
    # Granite divides its logits; the others have no such setting.
    return (logits / getattr(model.config, "logits_scaling", 1.0)).log_softmax(-1)
