"""Drafting: a tree grows layer by layer, one forward of the draft model a layer."""

from dataclasses import dataclass

import torch

from vllm_edsd.reference.model import Session
from vllm_edsd.scoring.distributions import probabilities, race
from vllm_edsd.scoring.draft import Draft, Draws, first_true
from vllm_edsd.scoring.scorer import Scorer


@dataclass(frozen=True)
class Plan:
    """The shape of a draft. ValueError for a width below 1, or a temperature that nothing can be drawn at."""

    widths: tuple[int, ...]  # children of each slot, by layer: (1,) * 5 is a chain, (4, 1, 1) four paths, () plain decoding
    draws: Draws = Draws.FIXED
    temperature: float = 1.0  # of the drafter's distributions

    def __post_init__(self) -> None:
        if min(self.widths, default=1) < 1 or self.temperature <= 0:
            raise ValueError(
                f"widths {self.widths} or temperature {self.temperature}: give widths from 1, a positive temperature"
            )


def draw(probs: torch.Tensor, width: int, draws: Draws, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Children for slots with drafter distributions [B, N, V]: tokens int64 [B, N, W] and which exist, bool [B, N, W].

    A token of probability 0 is never drawn: where the distribution holds fewer tokens than wanted, the rest does not exist.
    """
    if draws is Draws.INDEPENDENT:
        scores, tokens = race(probs[:, :, None].repeat(1, 1, width, 1), generator).max(-1)
    else:
        ranked = probs if draws is Draws.FIXED else race(probs, generator)
        scores, tokens = ranked.topk(min(width, probs.shape[-1]))
    return tokens, scores > 0


def grow(
    session: Session, roots: torch.Tensor, vocabulary: int, plan: Plan, scorer: Scorer, generator: torch.Generator
) -> Draft:
    """Feeds `roots` int64 [B] and all slots drafted below them to the drafter's session; unpruned but for layered scorers.

    The last layer is fed too, so that the drafter's cache holds the same slots as the target's.
    """
    everyone = roots[:, None]
    empty = torch.zeros(len(roots), 1, vocabulary, dtype=torch.float64, device=roots.device)
    draft = Draft(everyone, torch.zeros_like(everyone), torch.ones_like(everyone, dtype=torch.bool), empty, plan.draws)
    begin = 0
    for width in (*plan.widths, 0):
        end = draft.tokens.shape[1]
        found = probabilities(session.feed(draft.tokens[:, begin:], draft.parents[:, begin:]), plan.temperature)
        # A drafter that fails (NaN) proposes nothing there; the text is the target's either way.
        draft.probs[:, begin:] = found.masked_fill(~found.isfinite().all(-1, keepdim=True), 0)
        if not width:
            break
        drawn, exists = draw(draft.probs[:, begin:], width, plan.draws, generator)
        parents = torch.arange(begin, end, device=roots.device)[:, None].expand_as(drawn).flatten(1)
        tokens, alive = drawn.flatten(1), exists.flatten(1)
        if scorer.layered:
            alive = scorer.prune(draft.extended(tokens, parents, alive)).alive[:, end:]
        order = first_true(alive)
        if not order.shape[1]:
            break
        draft = draft.extended(*(each.gather(1, order) for each in (tokens, parents, alive)))
        begin = end
    return draft
