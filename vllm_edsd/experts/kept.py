"""Texts with the whole model's states: what a repair is fitted to and trained on."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vllm_edsd.errors import UserError
from vllm_edsd.experts.replay import Pass, go_on, predictions, record
from vllm_edsd.experts.routed import RoutedLayer, routed_layers
from vllm_edsd.experts.texts import Text


@dataclasses.dataclass(frozen=True)
class Kept:
    """A text, its pass up to the first layer that loses experts, and the whole model's final states where scored [n, d]."""

    text: Text
    passed: Pass
    full: torch.Tensor


def losing(model: Any, counts: Mapping[int, int]) -> list[RoutedLayer]:
    """The layers that `counts` leaves fewer experts. Raises UserError where there are none."""
    found = [layer for layer in routed_layers(model) if counts.get(layer.index, layer.top_k) < layer.top_k]
    if not found:
        raise UserError("this plan leaves every layer all of its experts, so nothing needs repair; plan a lower budget")
    return found


@torch.no_grad()  # not inference mode, whose tensors autograd refuses
def keep(
    model: Any, texts: Sequence[Text], counts: Mapping[int, int], report: Callable[[], None] = lambda: None
) -> list[Kept]:
    """The texts' states; `report()` after each."""
    first = losing(model, counts)[0].index
    kept = []
    for text in texts:
        passed = record(model, text.tokens)
        full = passed.inputs[-1][:, text.scored].clone()
        kept.append(Kept(text, Pass(passed.inputs[: first + 1], passed.arguments), full))
        report()
    return kept


def divergence(model: Any, item: Kept) -> torch.Tensor:
    """KL(whole || the model as its layers are set now) in nats, summed over the answer's tokens."""
    found = predictions(model, go_on(model, item.passed, len(item.passed.inputs) - 1), item.text.scored)
    with torch.no_grad():
        whole = predictions(model, item.full, slice(None))
    return nn.functional.kl_div(found, whole, reduction="sum", log_target=True)
