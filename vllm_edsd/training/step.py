"""One optimiser step's loss: unrolled, curriculum-masked, on the draft vocabulary."""

import dataclasses
from collections.abc import Callable

import torch

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.training.batches import Batch
from vllm_edsd.training.losses import LOSSES, ROWS, head_loss
from vllm_edsd.training.unroll import shift, unroll


@dataclasses.dataclass(frozen=True)
class StepResult:
    """`loss` to differentiate; `acceptance`, for each depth, the share of trained positions guessed as the target would."""

    loss: torch.Tensor
    acceptance: list[float]


def draft_targets(head: torch.Tensor, final: torch.Tensor, whole: bool = True) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The target's distribution renormalised on the draft vocabulary, and its entropy.

    [R, H] states and [V_draft, H] head to p [R, V_draft] (None unless `whole`) and -sum p ln p, float32 [R]. (As EDTrain
    has it; where mass lies outside the draft vocabulary this understates the entropy.)
    """
    target = torch.empty(len(final), len(head), dtype=final.dtype, device=final.device) if whole else None
    entropy = torch.empty(len(final), device=final.device)
    for begin in range(0, len(final), ROWS):
        rows = slice(begin, begin + ROWS)
        logs = (final[rows] @ head.T).float().log_softmax(-1)
        chances = logs.exp()
        if target is not None:
            target[rows] = chances.to(final.dtype)
        entropy[rows] = -logs.mul_(chances).sum(-1)
    return target, entropy


def training_loss(
    drafter: Drafter,
    embedding: torch.Tensor,
    head: torch.Tensor,
    batch: Batch,
    depth: int,
    select: Callable[[torch.Tensor], torch.Tensor],
    decay: float,
    going_on: float,
    dtype: torch.dtype,
    loss: str = "kl",
) -> StepResult:
    """sum_j decay^j L_j; for loss kl L_j = -(1/BS) sum m_j sum_v p log q_j (EDTrain). BS counts positions before any mask.

    Only a share `going_on` of the samples of one unroll step goes on to the next, which BS follows [ours].

    `head` holds the target's rows of the draft vocabulary, in `dtype`; `select` says from the target's entropies which
    tokens the curriculum keeps. Positions whose target argmax (whose token, for a loss against the text) lies outside the
    draft vocabulary are masked.
    """
    wanted = LOSSES[loss].wanted
    tokens = shift(batch.following[:, -batch.valid.shape[1] :], 1) if wanted == "text" else batch.argmax
    keep = batch.valid & drafter.t2d[tokens]
    target, entropy = draft_targets(head, batch.final[keep], wanted == "distribution")
    if target is None:
        target = torch.searchsorted(drafter.draft_ids, tokens[keep])
    rows = torch.full(keep.shape, -1, dtype=torch.long, device=keep.device)
    rows[keep] = torch.arange(len(target), device=keep.device)
    # The mask is of target tokens, so that it follows them through the unroll.
    keep[keep.clone()] = select(entropy)
    total = torch.zeros((), device=keep.device)
    acceptance = []
    device = keep.device.type
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        for step, state in enumerate(unroll(drafter, embedding, batch, depth, going_on)):
            count = len(state)
            mask = shift(keep[:count], step)
            compared = target[shift(rows[:count], step)[mask]]
            scale = decay**step / max(int(batch.valid[:count].sum()), 1)
            hidden = drafter.norm(state[mask]).to(dtype)
            with torch.autocast(device, enabled=False):
                part, guesses = head_loss(hidden, drafter.lm_head.weight, compared, scale, loss)
            total = total + part
            said = drafter.draft_ids[guesses]
            acceptance.append(float((said == shift(batch.argmax[:count], step)[mask]).float().mean()) if len(said) else 0.0)
    return StepResult(total, acceptance)
