"""The distillation of a carved MoE from the dense model it was carved from.

Loss: KL(dense || MoE) of the predictions at some positions, plus the relative squared error of every layer's output at all
of them; the second costs no head and tells each layer what it owes.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from vllm_edsd.errors import UserError
from vllm_edsd.experts.recipe import CarveRecipe
from vllm_edsd.files import atomic

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
            group["lr"] = rate * _rate(step, recipe.steps, recipe.warmup)
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


def _rate(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then a cosine to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _save(path: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, step: int, identity: dict) -> None:
    tensors = {f"weight.{name}": parameter.detach() for name, parameter in named.items()}
    for name, parameter in named.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    with atomic(path) as partial:
        save_file(tensors, partial, metadata={"edsd": json.dumps({"step": step, "identity": identity}, sort_keys=True)})


def _restore(path: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, identity: dict) -> int:
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["edsd"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path} is damaged ({error}); delete it to start over") from error
    for key in sorted(identity.keys() | header["identity"].keys()):
        if header["identity"].get(key) != identity.get(key):
            raise UserError(
                f"checkpoint {path} was made with {key} = {header['identity'].get(key)!r}, now {identity.get(key)!r}; "
                "give another --out, or delete the checkpoint to start over"
            )
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[f"weight.{name}"])
            moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(header["step"])), **moments}
    return int(header["step"])
