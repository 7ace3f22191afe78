"""EVICT: verify as many of the likeliest draft tokens as pay for themselves."""

from collections.abc import Sequence

import torch

from vllm_edsd.errors import UserError
from vllm_edsd.scoring.draft import Draft, Draws
from vllm_edsd.scoring.recursive import Recursive
from vllm_edsd.scoring.survival import survival


def spend(scores: torch.Tensor, costs: torch.Tensor, expected: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Which slots to verify on top of `count` [B] of them that emit `expected` [B] tokens: bool [B, S].

    argmax over k of (expected + sum of the k best `scores` [B, S]) / costs[count + k], the fewest where equal; -inf is never
    chosen. `costs` [N] in seconds per step.
    """
    ranked, order = scores.sort(dim=1, descending=True, stable=True)
    emitted = torch.cat([expected[:, None], expected[:, None] + ranked.cumsum(1)], 1)
    sizes = count[:, None] + torch.arange(emitted.shape[1], device=scores.device)
    best = (emitted / costs[sizes.clamp(max=len(costs) - 1)]).argmax(1)
    return order.argsort(1) < best[:, None]


class Evict(Recursive):
    """arXiv 2605.00342: k* = argmax_k E[k]/C[k], E[k] = 1 (the bonus token) + the sum of the k best survival scores.

    `costs[k]`: mean seconds of a whole iteration that verifies k draft tokens of one request, k = 0 to all slots. Fixed
    drafts are cut at once, over the whole tree. Sampled ones layer by layer, so that no slot is kept or dropped because of
    what was drawn in it or after it [ours]; `layered` stays off, since that is not the fixed drafts' rule.
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self.costs = torch.as_tensor(costs, dtype=torch.float64)
        if not len(self.costs) or not (torch.isfinite(self.costs) & (self.costs > 0)).all():
            raise UserError(f"EVICT's costs are {list(costs)}: give seconds above 0 for 0, 1, 2, ... verified tokens")

    def prune(self, draft: Draft) -> Draft:
        slots = draft.tokens.shape[1]
        if len(self.costs) < slots:
            raise UserError(f"EVICT has {len(self.costs)} costs for drafts of up to {slots - 1} tokens: give {slots}")
        scores = survival(draft).double()
        costs = self.costs.to(scores.device)
        root = draft.depths == 0
        if draft.draws is Draws.FIXED:
            bonus = torch.ones_like(scores[:, 0])
            return draft.pruned(spend(scores.masked_fill(root, -torch.inf), costs, bonus, bonus.long() - 1))
        kept = root
        for depth in range(1, int(draft.depths.max()) + 1):
            layer = (draft.depths == depth) & kept.gather(1, draft.parents)
            expected = scores.masked_fill(~kept, 0).sum(1)  # the root's 1 is the bonus token
            kept = kept | spend(scores.masked_fill(~layer, -torch.inf), costs, expected, kept.sum(1) - 1)
        return draft.pruned(kept)
