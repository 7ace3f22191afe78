"""Scorers that decide token by token, each step a coupling of the target's token with the drafted candidates."""

from abc import abstractmethod

import torch

from vllm_edsd.scoring.distributions import race
from vllm_edsd.scoring.draft import Draft, Draws, first_true
from vllm_edsd.scoring.scorer import Scorer, Verdict


class Coupling(Scorer):
    """Walks down the tree: emit a token, go on at the candidates that hold it, stop where none does.

    Repeated siblings are walked together and pool their children, as SpecTr's surviving drafts do (arXiv 2310.15141,
    algorithm 3).
    """

    @abstractmethod
    def couple(
        self, target: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor, present: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        """The distribution of the emitted token given the candidates, [B, V].

        `target` and `draft` [B, V], candidates `tokens` int64 [B, M] with M >= 1, of which the first `present` bool [B, M]
        are real. Lossless when its mean over the draw of the candidates is `target`.
        """

    def accept(self, draft: Draft, target: torch.Tensor, generator: torch.Generator) -> Verdict:
        rows = torch.arange(len(target), device=target.device)
        slots = torch.full_like(draft.tokens, -1)
        following = draft.tokens[:, 0]
        reached = torch.zeros_like(draft.alive)
        reached[:, 0] = walking = torch.ones_like(reached[:, 0])
        depth = 0
        while walking.any():
            children = draft.alive & reached.gather(1, draft.parents)
            children[:, 0] = False
            here = reached.int().argmax(1)
            emission = target[rows, here]
            order = first_true(children)
            if order.shape[1]:
                candidates, present = draft.tokens.gather(1, order), children.gather(1, order)
                emission = self.couple(emission, draft.probs[rows, here], candidates, present, draft.draws)
            token = race(emission, generator).argmax(1)
            following = torch.where(walking, token, following)
            reached = children & (draft.tokens == token[:, None])
            walking = reached.any(1)
            slots[:, depth] = torch.where(walking, reached.int().argmax(1), -1)
            depth += 1
        return Verdict(slots, following)
