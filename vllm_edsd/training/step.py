"""One optimiser step's loss: unrolled, curriculum-masked, on the draft vocabulary; for a batch or a part of one."""

import dataclasses
import math
from collections.abc import Sequence

import torch

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.kernels import soft_ce
from vllm_edsd.kernels.dispatch import use_triton
from vllm_edsd.kernels.draft_stats import draft_stats
from vllm_edsd.kernels.head_soft_ce import head_soft_ce
from vllm_edsd.training.batches import Batch, Indexed
from vllm_edsd.training.losses import LOSSES, blocks, head_loss
from vllm_edsd.training.unroll import shift, unroll


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Samples to train on and what their chains are compared with.

    `known` bool [B, Lq]: chains whose token is in the draft vocabulary, R in all, row by row. For each of them `target` is
    a distribution [R, V], its logits where `fused` (which the kernels read), or a draft id [R], and `entropy` [R] the
    target's, in nats.
    """

    batch: Batch
    known: torch.Tensor
    target: torch.Tensor
    entropy: torch.Tensor
    fused: bool = False

    def entropies(self) -> list[torch.Tensor]:
        """Those of each sample."""
        return list(self.entropy.split(self.known.sum(-1).tolist()))


@dataclasses.dataclass(frozen=True)
class StepResult:
    """`loss` to differentiate; `right` and `compared`, float32 [depth]: chains guessed as the target would, of how many."""

    loss: torch.Tensor
    right: torch.Tensor
    compared: torch.Tensor


def drafted(count: int, depth: int, going_on: float) -> list[int]:
    """How many of a batch's `count` samples are drafted at each unroll step: only a share `going_on` goes on to the next."""
    rows = [count]
    while len(rows) < depth:
        rows.append(math.ceil(going_on * rows[-1]))
    return rows


def positions(items: Sequence[Indexed], rows: Sequence[int]) -> list[int]:
    """BS: the valid chains of a batch at each unroll step, before any mask."""
    return [max(sum(item.chains - 1 for item in items[:count]), 1) for count in rows]


def draft_targets(head: torch.Tensor, final: torch.Tensor, whole: bool = True) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The target's distribution renormalised on the draft vocabulary, and its entropy.

    [R, H] states and [V_draft, H] head to p [R, V_draft] (None unless `whole`) and -sum p ln p, float32 [R]. (As EDTrain
    has it; where mass lies outside the draft vocabulary this understates the entropy.)
    """
    target = torch.empty(len(final), len(head), dtype=final.dtype, device=final.device) if whole else None
    entropy = torch.empty(len(final), device=final.device)
    for rows in blocks(final):
        logs = (final[rows] @ head.T).float().log_softmax(-1)
        chances = logs.exp()
        if target is not None:
            target[rows] = chances.to(final.dtype)
        entropy[rows] = -logs.mul_(chances).sum(-1)
    return target, entropy


def prepare(drafter: Drafter, head: torch.Tensor, batch: Batch, loss: str = "kl") -> Prepared:
    """What `batch` is compared with under `loss`; `head` holds the target's rows of the draft vocabulary.

    Positions whose target argmax (whose token, for a loss against the text) lies outside the draft vocabulary are left out.
    """
    wanted = LOSSES[loss].wanted
    tokens = shift(batch.following[:, -batch.valid.shape[1] :], 1) if wanted == "text" else batch.argmax
    known = batch.valid & drafter.t2d[tokens]
    if loss in soft_ce.LOSSES and use_triton(batch.final):
        logits = batch.final[known] @ head.T
        return Prepared(batch, known, logits, draft_stats(logits).entropy, fused=True)
    target, entropy = draft_targets(head, batch.final[known], wanted == "distribution")
    if target is None:
        target = torch.searchsorted(drafter.draft_ids, tokens[known])
    return Prepared(batch, known, target, entropy)


def training_loss(
    drafter: Drafter,
    embedding: torch.Tensor,
    prepared: Prepared,
    kept: torch.Tensor,
    rows: Sequence[int],
    positions: Sequence[int],
    decay: float,
    dtype: torch.dtype,
    loss: str = "kl",
) -> StepResult:
    """sum_j decay^j L_j; for loss kl L_j = -(1/BS_j) sum m_j sum_v p log q_j (EDTrain).

    `kept` bool [R] are the tokens that the curriculum keeps. The first `rows[j]` samples are drafted at step j [ours], and
    `positions[j]` is BS_j, the positions of the whole batch: the losses of its parts add up to that of the batch.
    """
    batch, known = prepared.batch, prepared.known
    place = torch.full(known.shape, -1, dtype=torch.long, device=known.device)
    place[known] = torch.arange(len(prepared.target), device=known.device)
    # The mask is of target tokens, so that it follows them through the unroll.
    keep = known.clone()
    keep[known] = kept
    total = torch.zeros((), device=keep.device)
    right, compared = torch.zeros(2, len(rows), device=keep.device)
    device = keep.device.type
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        for step, state in enumerate(unroll(drafter, embedding, batch, rows)):
            count = len(state)
            mask = shift(keep[:count], step)
            wanted = shift(place[:count], step)[mask]
            target = prepared.target[wanted]
            hidden = drafter.norm(state[mask]).to(dtype)
            with torch.autocast(device, enabled=False):
                scale = decay**step / positions[step]
                if prepared.fused:
                    part, guesses = head_soft_ce(hidden, drafter.lm_head.weight, target, scale, loss=loss)
                    if loss == "kl":  # which the kernel gives less the target's entropy
                        part = part + prepared.entropy[wanted].sum() * scale
                else:
                    part, guesses = head_loss(hidden, drafter.lm_head.weight, target, scale, loss)
            total = total + part
            right[step] = (drafter.draft_ids[guesses] == shift(batch.argmax[:count], step)[mask]).sum()
            compared[step] = len(guesses)
    return StepResult(total, right, compared)
