"""Training the hook: everything else frozen, all layers' parts at once.

The loss is KL(whole || reduced) over the answers alone: cross-entropy beside it (methods.md section 2) made hooks that
harm (docs/results/experts.md).
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from vllm_edsd.experts.hook import Hook
from vllm_edsd.experts.kept import Kept, divergence, losing
from vllm_edsd.experts.plan import Mode
from vllm_edsd.experts.reduction import reduced

CLIP = 1.0
WARMUP = 0.1


class HookRecipe(BaseModel):
    """How a hook is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rank: int = Field(default=64, ge=1)
    epochs: int = Field(default=2, ge=1)
    texts_per_step: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    seed: int = Field(default=0, ge=0)


def train(
    model: Any,
    kept: Sequence[Kept],
    counts: Mapping[int, int],
    mode: Mode,
    hooks: Mapping[int, Hook],
    recipe: HookRecipe,
    report: Callable[[float], None] = lambda _: None,
) -> None:
    """Trains `hooks` in place; `report(loss)` after each text. The model's own weights must be frozen."""
    layers = losing(model, counts)
    parameters = [parameter for hook in hooks.values() for parameter in hook.parameters()]
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=0.0)
    shuffler = random.Random(recipe.seed)
    order = [place for _ in range(recipe.epochs) for place in shuffler.sample(range(len(kept)), len(kept))]
    steps = math.ceil(len(order) / recipe.texts_per_step)
    for step in range(steps):
        places = order[step * recipe.texts_per_step : (step + 1) * recipe.texts_per_step]
        optimizer.zero_grad(set_to_none=True)
        for place in places:
            item = kept[place]
            with reduced(layers, counts, item.text.rows(mode), hooks):
                loss = divergence(model, item) / len(item.text.wanted)
            (loss / len(places)).backward()
            report(float(loss.detach()))
        nn.utils.clip_grad_norm_(parameters, CLIP)
        rate = min((step + 1) / max(1, WARMUP * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate
        optimizer.step()


@torch.inference_mode()
def mean_divergence(
    model: Any, kept: Sequence[Kept], counts: Mapping[int, int], mode: Mode, hooks: Mapping[int, Hook] | None
) -> float:
    """Mean KL(whole || reduced with `hooks`) in nats per answer token."""
    layers = losing(model, counts)
    total = 0.0
    for item in kept:
        with reduced(layers, counts, item.text.rows(mode), hooks):
            total += float(divergence(model, item))
    return total / sum(len(item.text.wanted) for item in kept)
