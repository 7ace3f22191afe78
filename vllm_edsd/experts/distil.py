"""The distillation of a carved MoE from the dense model it was carved from.

Loss: KL(dense || MoE) of the predictions at some positions, plus the relative squared error of every layer's output at all
of them; the second costs no head and tells each layer what it owes.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vllm_edsd.experts.recipe import CarveRecipe
from vllm_edsd.training import schedule, state

CLIP = 1.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """After a step: the mean KL in nats per position of the step, and tokens per second since the start or resumption."""

    step: int
    steps: int
    divergence: float
    tokens_per_s: float


def distil(
    dense: Any,
    moe: Any,
    rows: torch.Tensor,
    recipe: CarveRecipe,
    checkpoint: Path,
    identity: dict,
    shown: Callable[[Progress], None],
) -> None:
    """Trains `moe` in place on `rows` int64 [n, length], in order, again from the first where they end.

    Continues from `checkpoint` where it exists, to the identical next step. Raises UserError when that is damaged or was
    made with another `identity`.
    """
    named = {name: parameter for name, parameter in moe.named_parameters() if parameter.requires_grad}
    routers = [parameter for name, parameter in named.items() if name.endswith("router")]
    changes = [parameter for name, parameter in named.items() if not name.endswith("router")]
    optimizer = torch.optim.AdamW(
        [{"params": changes, "lr": recipe.learning_rate}, {"params": routers, "lr": recipe.router_learning_rate}],
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    rates = [group["lr"] for group in optimizer.param_groups]
    first = _restore(checkpoint, named, optimizer, identity)
    begun = time.monotonic()
    for step in range(first, recipe.steps):
        places = torch.arange(step * recipe.rows_per_step, (step + 1) * recipe.rows_per_step) % len(rows)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        loss, divergence = _loss(dense, moe, rows[places], recipe.predicted, generator)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule.share(step, recipe.steps, recipe.warmup)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(named.values(), CLIP)
        optimizer.step()
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
            _save(checkpoint, named, optimizer, step + 1, identity)
        done = (step + 1 - first) * recipe.rows_per_step * rows.shape[1]
        shown(Progress(step + 1, recipe.steps, divergence, done / (time.monotonic() - begun)))


def _loss(
    dense: Any, moe: Any, rows: torch.Tensor, predicted: float, generator: torch.Generator
) -> tuple[torch.Tensor, float]:
    places = torch.randperm(rows.numel(), generator=generator)[: max(1, round(predicted * rows.numel()))]
    with torch.no_grad(), _half():
        wanted = dense.model(rows, use_cache=False, output_hidden_states=True)
        targets = dense.lm_head(wanted.last_hidden_state.flatten(0, 1)[places]).float().log_softmax(-1)
    with _half():
        found = moe.model(rows, use_cache=False, output_hidden_states=True)
        logits = moe.lm_head(found.last_hidden_state.flatten(0, 1)[places]).float()
    divergence = nn.functional.kl_div(logits.log_softmax(-1), targets, reduction="batchmean", log_target=True)
    errors = [
        (mine.float() - theirs.float()).square().sum() / theirs.float().square().sum()
        for mine, theirs in zip(found.hidden_states[1:], wanted.hidden_states[1:], strict=True)
    ]
    return divergence + torch.stack(errors).mean(), float(divergence.detach())


def _half() -> torch.autocast:
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16)


def _save(path: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, step: int, identity: dict) -> None:
    weights = {f"weight.{name}": parameter.detach() for name, parameter in named.items()}
    state.write(path, weights | state.moments(optimizer, named), step, identity)


def _restore(path: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, identity: dict) -> int:
    found = state.read(path)
    if found is None:
        return 0
    state.require_same(path, found.identity, identity)
    weights = found.weights
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    state.restore_moments(optimizer, named, found)
    return found.step
