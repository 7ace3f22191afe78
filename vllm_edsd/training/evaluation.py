"""Held-out evaluation: the drafter on unmasked text at full depth, and the acceptance length of the chain it would draft."""

import dataclasses
from collections.abc import Iterable

import torch

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.training.batches import Batch
from vllm_edsd.training.unroll import shift, unroll


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Greedy chain of `depth` tokens on the target's greedy answers, bonus token included in `acceptance_length`.

    `per_position[j]` is the share of drafts whose token j was accepted, as vLLM counts it; `loss` is the mean over depths of
    the cross-entropy against the text, in nats, on tokens of the draft vocabulary.
    """

    acceptance_length: float
    per_position: list[float]
    loss: float
    drafts: int


@torch.inference_mode()
def evaluate(
    drafter: Drafter, embedding: torch.Tensor, batches: Iterable[Batch], depth: int, dtype: torch.dtype
) -> Evaluation:
    """Teacher-forced, which for a greedy chain is exact: a draft only counts where all tokens before it were accepted."""
    accepted = torch.zeros(depth)
    drafts, loss, losses = 0, 0.0, 0
    for batch in batches:
        chains = batch.valid.shape[1]
        written = shift(batch.following[:, -chains:], 1)
        matches = torch.zeros(*batch.valid.shape, depth, dtype=torch.bool)
        with torch.autocast(batch.valid.device.type, dtype, enabled=dtype != torch.float32):
            for step, state in enumerate(unroll(drafter, embedding, batch, [len(batch.valid)] * depth)):
                mask, text = shift(batch.valid, step), shift(written, step)
                logits = drafter.logits(state[mask]).float()
                hits = drafter.draft_ids[logits.argmax(-1)] == text[mask]
                matches[..., step][mask.cpu()] = hits.cpu()
                known = drafter.t2d[text[mask]]
                rows = torch.searchsorted(drafter.draft_ids, text[mask][known])
                loss += float(torch.nn.functional.cross_entropy(logits[known], rows, reduction="sum"))
                losses += len(rows)
        for row, valid in zip(matches, batch.valid.cpu(), strict=True):
            for count in walk(row[valid]):
                accepted[:count] += 1
                drafts += 1
    per_position = (accepted / max(drafts, 1)).tolist()
    return Evaluation(1 + sum(per_position), per_position, loss / max(losses, 1), drafts)


def walk(matches: torch.Tensor) -> list[int]:
    """Accepted tokens of each draft, going through one answer as a server does.

    matches bool [chains, depth]: whether the chain that starts there would match at each step, given that it did before.
    """
    counts, start = [], 0
    runs = matches.int().cumprod(-1).sum(-1).tolist()
    while start < len(runs):
        counts.append(runs[start])
        start += runs[start] + 1
    return counts
