"""One optimiser step's loss: unrolled, curriculum-masked soft cross-entropy on the draft vocabulary."""

import dataclasses

import torch

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.training.batches import Batch
from vllm_edsd.training.curriculum import easy_tokens
from vllm_edsd.training.losses import ROWS, head_loss
from vllm_edsd.training.unroll import shift, unroll


@dataclasses.dataclass(frozen=True)
class StepResult:
    """`loss` to differentiate; `acceptance`, for each depth, the share of trained positions guessed as the target would."""

    loss: torch.Tensor
    acceptance: list[float]


def draft_targets(head: torch.Tensor, final: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's distribution renormalised on the draft vocabulary, and its entropy.

    [R, H] states and [V_draft, H] head to p [R, V_draft] and -sum p ln p, float32 [R]. (As EDTrain has it; where mass lies
    outside the draft vocabulary this understates the entropy.)
    """
    target = torch.empty(len(final), len(head), dtype=final.dtype, device=final.device)
    entropy = torch.empty(len(final), device=final.device)
    for begin in range(0, len(final), ROWS):
        rows = slice(begin, begin + ROWS)
        logs = (final[rows] @ head.T).float().log_softmax(-1)
        chances = logs.exp()
        target[rows] = chances.to(final.dtype)
        entropy[rows] = -logs.mul_(chances).sum(-1)
    return target, entropy


def training_loss(
    drafter: Drafter,
    embedding: torch.Tensor,
    head: torch.Tensor,
    batch: Batch,
    depth: int,
    share: float,
    decay: float,
    going_on: float,
    dtype: torch.dtype,
) -> StepResult:
    """sum_j decay^j L_j with L_j = -(1/BS) sum m_j sum_v p log q_j (EDTrain); BS counts positions before any mask.

    Only a share `going_on` of the samples of one unroll step goes on to the next, which BS follows [ours].

    `head` holds the target's rows of the draft vocabulary, in `dtype`; `share` is the entropy mask's share. Positions whose
    target argmax lies outside the draft vocabulary are masked.
    """
    keep = batch.valid & drafter.t2d[batch.argmax]
    target, entropy = draft_targets(head, batch.final[keep])
    rows = torch.full(keep.shape, -1, dtype=torch.long, device=keep.device)
    rows[keep] = torch.arange(len(target), device=keep.device)
    # The mask is of target tokens, so that it follows them through the unroll.
    keep[keep.clone()] = easy_tokens(entropy, share)
    total = torch.zeros((), device=keep.device)
    acceptance = []
    device = keep.device.type
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        for step, state in enumerate(unroll(drafter, embedding, batch, depth, going_on)):
            count = len(state)
            mask = shift(keep[:count], step)
            wanted = shift(rows[:count], step)[mask]
            scale = decay**step / max(int(batch.valid[:count].sum()), 1)
            hidden = drafter.norm(state[mask]).to(dtype)
            with torch.autocast(device, enabled=False):
                loss, guesses = head_loss(hidden, drafter.lm_head.weight, target[wanted], scale)
            total = total + loss
            said = drafter.draft_ids[guesses]
            acceptance.append(float((said == shift(batch.argmax[:count], step)[mask]).float().mean()) if len(said) else 0.0)
    return StepResult(total, acceptance)
