"""Block verification: a chain is judged as a whole, and at least as much of it is accepted as token by token."""

import torch

from vllm_edsd.scoring.distributions import normalised, point, race
from vllm_edsd.scoring.draft import Draft, Draws
from vllm_edsd.scoring.scorer import Scorer, Verdict


class Block(Scorer):
    """Sun et al. 2024 (arXiv 2403.10444), algorithm 2, for chains; ValueError for a tree.

    Ragged chains stay lossless where the length was decided before the first missing token was drawn [ours: the induction
    of the paper's proof only needs the last drafted position of each prefix to accept with its balance].
    """

    def judge(self, draft: Draft, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Chance [B, S] that exactly the first s tokens are accepted, and what then follows, [B, S, V].

        Balance b_0 = 1, b_s = min(1, b_{s-1} p(x_s)/q(x_s)); surplus r_s = max(0, b_s p - q), of sum R_s; position s passes
        with R_s/(R_s + 1 - b_s), the last drafted one with b_s; the last position that passes counts, and r_s follows.
        """
        rows, slots = draft.tokens.shape
        if (draft.parents != (torch.arange(slots, device=target.device) - 1).clamp(min=0)).any():
            raise ValueError("block verification takes chains: use the scorer 'recursive' for trees")
        balance = target.new_ones(rows)
        passes, follows = [], []
        for slot in range(slots):
            here = target[:, slot]
            if slot + 1 == slots:
                passes.append(balance * draft.alive[:, slot])
                follows.append(here)
                break
            token, more = draft.tokens[:, slot + 1], draft.alive[:, slot + 1]
            proposal = point(token, target) if draft.draws is Draws.FIXED else draft.probs[:, slot]
            surplus = (balance[:, None] * here - proposal).clamp(min=0)
            total = surplus.sum(1)
            rest = total + 1 - balance
            chance = torch.where(rest > 0, total / rest, 1)
            passes.append(torch.where(more, chance, balance) * draft.alive[:, slot])
            follows.append(torch.where(more[:, None], normalised(surplus, here), here))
            wanted, offered = (chances.gather(1, token[:, None])[:, 0] for chances in (here, proposal))
            balance = torch.where(offered > 0, (balance * wanted / offered).clamp(max=1), 0)
        chances = torch.stack(passes, 1)
        chances[:, 0] = 1
        fails_after = (1 - chances).flip(1).cumprod(1).flip(1).roll(-1, 1)
        fails_after[:, -1] = 1
        return chances * fails_after, torch.stack(follows, 1)

    def accept(self, draft: Draft, target: torch.Tensor, generator: torch.Generator) -> Verdict:
        chances, follows = self.judge(draft, target)
        length = race(chances, generator).argmax(1)
        slots = torch.arange(1, target.shape[1] + 1, device=target.device).expand_as(draft.tokens)
        following = race(follows[torch.arange(len(length), device=length.device), length], generator).argmax(1)
        return Verdict(slots.masked_fill(slots > length[:, None], -1), following)
