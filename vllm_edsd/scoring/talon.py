"""TALON's budgeted tree: deep where the drafter is sure, wide where it is not."""

from typing import ClassVar

import torch

from vllm_edsd.errors import UserError
from vllm_edsd.scoring.draft import Draft
from vllm_edsd.scoring.recursive import Recursive
from vllm_edsd.scoring.survival import survival


class Talon(Recursive):
    """Inspired by TALON (arXiv 2601.07353): spends `budget` draft tokens by path probability, layer by layer.

    The first layer is kept whole; of a deeper one, [ours] the slots at least `gate` times as likely as its best; always the
    likeliest first and never more than what the layers above have left of the budget.
    """

    layered: ClassVar[bool] = True

    def __init__(self, budget: int, gate: float = 0.1) -> None:
        if budget < 0 or not 0 < gate <= 1:
            raise UserError(f"TALON's budget is {budget} and its gate {gate}: give a budget of 0 or more, a gate in (0, 1]")
        self.budget, self.gate = budget, gate

    def prune(self, draft: Draft) -> Draft:
        scores = survival(draft)
        kept = draft.depths == 0
        for depth in range(1, int(draft.depths.max()) + 1):
            layer = (draft.depths == depth) & kept.gather(1, draft.parents)
            here = scores.masked_fill(~layer, -torch.inf)
            if depth > 1:
                here = here.masked_fill(here < self.gate * here.amax(1, keepdim=True), -torch.inf)
            order = here.argsort(dim=1, descending=True, stable=True).argsort(1)
            left = self.budget - (kept.sum(1) - 1)
            kept = kept | ((order < left[:, None]) & here.isfinite())
        return draft.pruned(kept)
