"""Training the hook: everything else frozen, the gradient through the layers from its own on.

The loss is KL(whole || reduced) over the answers alone: cross-entropy beside it (methods.md section 2) made hooks that
harm (docs/results/experts.md).
"""

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from vllm_edsd.experts.hook import Hook
from vllm_edsd.experts.plan import Mode
from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.replay import Pass, go_on, predictions, record
from vllm_edsd.experts.routed import routed_layers
from vllm_edsd.experts.texts import Text

CLIP = 1.0
WARMUP = 0.1


class HookRecipe(BaseModel):
    """How a hook is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(default=64, ge=1)
    epochs: int = Field(default=2, ge=1)
    texts_per_step: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    seed: int = Field(default=0, ge=0)


@dataclasses.dataclass(frozen=True)
class Kept:
    """A text, what the reduced model gave layer l, and the whole model's final states at the scored positions [n, d]."""

    text: Text
    passed: Pass
    full: torch.Tensor


@torch.no_grad()  # not inference mode, whose tensors autograd refuses
def keep(model: Any, texts: Sequence[Text], counts: Mapping[int, int], mode: Mode, report: Callable[[], None]) -> list[Kept]:
    """The texts' states under the plan, for hooks at any layer; `report()` after each."""
    layers = routed_layers(model)
    kept = []
    for text in texts:
        full = record(model, text.tokens).inputs[-1][:, text.scored]
        with reduced(layers, counts, text.rows(mode)):
            kept.append(Kept(text, record(model, text.tokens), full))
        report()
    return kept


def train(
    model: Any,
    kept: Sequence[Kept],
    counts: Mapping[int, int],
    mode: Mode,
    layer: int,
    recipe: HookRecipe,
    report: Callable[[float], None] = lambda _: None,
) -> Hook:
    """A hook for `layer`, trained on `kept`; `report(loss)` after each text. The model's own weights must be frozen."""
    layers = routed_layers(model)
    hook = Hook(model.config.hidden_size, recipe.rank, recipe.seed)
    optimizer = torch.optim.AdamW(hook.parameters(), recipe.learning_rate, weight_decay=0.0)
    shuffler = random.Random(recipe.seed)
    order = [place for _ in range(recipe.epochs) for place in shuffler.sample(range(len(kept)), len(kept))]
    steps = math.ceil(len(order) / recipe.texts_per_step)
    for step in range(steps):
        places = order[step * recipe.texts_per_step : (step + 1) * recipe.texts_per_step]
        optimizer.zero_grad(set_to_none=True)
        for place in places:
            item = kept[place]
            with reduced(layers, counts, item.text.rows(mode), {layer: hook}):
                loss = _kl(model, item, layer)
            (loss / len(places)).backward()
            report(float(loss.detach()))
        nn.utils.clip_grad_norm_(hook.parameters(), CLIP)
        rate = min((step + 1) / max(1, WARMUP * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate
        optimizer.step()
    return hook


def _kl(model: Any, item: Kept, layer: int) -> torch.Tensor:
    """Mean over the answer's tokens, with the routing and the hook that are in place."""
    found = predictions(model, go_on(model, item.passed, layer), item.text.scored)
    with torch.no_grad():
        wanted = predictions(model, item.full, slice(None))
    return nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


@torch.inference_mode()
def divergence(
    model: Any, kept: Sequence[Kept], counts: Mapping[int, int], mode: Mode, layer: int, hook: Hook | None
) -> float:
    """Mean KL(full || reduced with `hook`) in nats per answer token."""
    layers = routed_layers(model)
    total, positions = 0.0, 0
    for item in kept:
        with reduced(layers, counts, item.text.rows(mode), {} if hook is None else {layer: hook}):
            total += float(_kl(model, item, layer)) * len(item.text.wanted)
        positions += len(item.text.wanted)
    return total / positions
