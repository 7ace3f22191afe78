"""What fewer experts cost, layer by layer: D_l(k) = mean KL(full || layer l at k experts), methods.md section 2."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from vllm_edsd.errors import UserError
from vllm_edsd.experts.plan import Mode
from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.replay import Pass, go_on, predictions, record
from vllm_edsd.experts.routed import RoutedLayer, routed_layers
from vllm_edsd.experts.texts import Text


class LayerProfile(BaseModel):
    """One MoE layer: `divergence[k - 1]` in nats per answer token for k = 1..K (0 at K), and how its routing is spread."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: int
    divergence: list[float]
    weight_share: list[float] = Field(description="mean share of the routing weight held by the k strongest experts")
    load: list[float] = Field(description="share of the routed tokens by expert; 1 / experts each when balanced")


class ExpertsProfile(BaseModel):
    """What `vllm-edsd experts profile` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    mode: Mode
    num_hidden_layers: int
    top_k: int
    num_experts: int
    texts: int
    answer_tokens: int
    layers: list[LayerProfile]
    experts_share_of_prefill: float | None = Field(
        description="the routed experts' share of the time in which vLLM reads these texts; on a CPU only"
    )
    provenance: dict


@torch.inference_mode()
def measure(model: Any, texts: Sequence[Text], mode: Mode, report: Callable[[], None] = lambda: None) -> list[LayerProfile]:
    """The layers of `model` on `texts`; `report()` after each layer of each text. Raises UserError where K is 1."""
    layers = routed_layers(model)
    if layers[0].top_k == 1:
        raise UserError(f"{type(model).__name__} sends a token to one expert per layer; there are none to leave out")
    totals = [torch.zeros(layer.top_k) for layer in layers]
    shares = [torch.zeros(layer.top_k) for layer in layers]
    loads = [torch.zeros(layer.experts) for layer in layers]
    positions, tokens = 0, 0
    for text in texts:
        with _Counting(layers, shares, loads):
            passed = record(model, text.tokens)
        rows, where = text.rows(mode), text.scored
        full = predictions(model, passed.inputs[-1], where)
        for place, layer in enumerate(layers):
            for k, state in enumerate(_every_k(model, layer, passed, rows), 1):
                fewer = predictions(model, state[None], where)
                totals[place][k - 1] += nn.functional.kl_div(fewer, full, reduction="sum", log_target=True)
            report()
        positions += len(text.wanted)
        tokens += text.tokens.numel()
    return [
        LayerProfile(
            layer=layer.index,
            divergence=(totals[place] / positions).clamp_min(0).tolist(),
            weight_share=(shares[place] / tokens).tolist(),
            load=(loads[place] / loads[place].sum()).tolist(),
        )
        for place, layer in enumerate(layers)
    ]


def _every_k(model: Any, layer: RoutedLayer, passed: Pass, rows: torch.Tensor) -> torch.Tensor:
    """The final norm's inputs [K - 1, T, d] with `layer` at k = 1..K-1, in one pass: larger products are faster."""
    copies = torch.arange(1, layer.top_k)[:, None]
    with contextlib.ExitStack() as stack:
        for k in range(1, layer.top_k):
            stack.enter_context(reduced([layer], {layer.index: k}, rows & (copies == k)))
        return go_on(model, passed, layer.index, layer.top_k - 1)


class _Counting:
    """While it is open, adds up how much weight each layer's strongest experts hold and how often each is routed to."""

    def __init__(self, layers: Sequence[RoutedLayer], shares: list[torch.Tensor], loads: list[torch.Tensor]):
        self._layers, self._shares, self._loads = layers, shares, loads

    def __enter__(self) -> None:
        self._handles = [layer.on_routing(self._counter(place)) for place, layer in enumerate(self._layers)]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _counter(self, place: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def count(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            ordered = weights.float().sort(dim=-1, descending=True).values.cumsum(-1)
            self._shares[place] += (ordered / ordered[:, -1:]).sum(0)
            self._loads[place] += torch.bincount(ids.flatten(), minlength=len(self._loads[place]))
            return weights

        return count
