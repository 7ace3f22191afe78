"""How likely each drafted token is to be reached and accepted, as far as the drafter can tell."""

import torch

from vllm_edsd.scoring.draft import Draft, Draws


def survival(draft: Draft) -> torch.Tensor:
    """Product of drafter probabilities from the root to each slot, float [B, S]; 1 at the root, -inf at dead slots.

    Fixed draws: the tokens' own probabilities (EVICT, arXiv 2605.00342). Sampled draws [ours]: the j-th sibling counts as
    the j-th most likely token, whatever was drawn, so that a slot's score says nothing about its token.
    Never rises from parent to child.
    """
    given = draft.probs.gather(1, draft.parents[..., None].expand_as(draft.probs))
    if draft.draws is Draws.FIXED:
        chances = given.gather(2, draft.tokens[..., None])[..., 0]
    else:
        ranks = draft.ranks.clamp(max=given.shape[-1] - 1)
        chances = given.sort(-1, descending=True).values.gather(2, ranks[..., None])[..., 0]
    scores = torch.ones_like(chances)
    for slot in range(1, scores.shape[1]):
        scores[:, slot] = scores.gather(1, draft.parents[:, slot : slot + 1])[:, 0] * chances[:, slot]
    return scores.masked_fill(~draft.alive, -torch.inf)
