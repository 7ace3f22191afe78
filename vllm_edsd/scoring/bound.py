"""The optimal-transport bound: no scorer accepts one of k candidates more often."""

import torch

from vllm_edsd.scoring.draft import Draws

LARGEST = 16  # tokens whose subsets are enumerated


def alpha_star(target: torch.Tensor, draft: torch.Tensor, drafts: int = 1, draws: Draws = Draws.INDEPENDENT) -> float:
    """Largest probability, over all lossless couplings, that the emitted token is among `drafts` candidates.

    1 + min over token sets H of target(H) - Pr(all candidates in H): max-flow min-cut (arXiv 2502.18779). `target` and
    `draft` float64 [V]. Independent draws take any V; distinct ones enumerate the sets: ValueError above V = 16.
    """
    if drafts < 1:
        raise ValueError(f"{drafts} drafts: give 1 or more")
    if draws is Draws.FIXED:
        return float(target[draft.topk(min(drafts, len(draft))).indices].sum())
    if draws is Draws.INDEPENDENT:
        # target(H) - draft(H)^k is concave in (draft(H), target(H)): its minimum is at a vertex of their hull, a set of the
        # tokens with the smallest target/draft.
        order = torch.where(draft > 0, target / draft, torch.inf).argsort()
        lowest = (target[order].cumsum(0) - draft[order].cumsum(0) ** drafts).min()
        return float(1 + lowest.clamp(max=0))
    if len(target) > LARGEST:
        raise ValueError(
            f"{len(target)} tokens: the bound for distinct draws enumerates subsets, of {LARGEST} tokens at most"
        )
    within = distinct_sets(draft, drafts)
    masses = torch.zeros_like(within)
    sets = torch.arange(len(within))
    for token in range(len(target)):
        has = (sets >> token) & 1 == 1
        masses[has] += target[token]
        within[has] += within[sets[has] - (1 << token)]
    return float(1 + (masses - within).min())


def distinct_sets(draft: torch.Tensor, drafts: int) -> torch.Tensor:
    """Chance that the candidates, drawn without replacement, are exactly each set: [2^V], bit i of the index is token i."""
    drafts = min(drafts, int((draft > 0).sum()))
    sets = torch.arange(2 ** len(draft))
    chances, rest = torch.zeros(len(sets), dtype=draft.dtype), torch.zeros(len(sets), dtype=draft.dtype)
    for token, mass in enumerate(draft):
        rest += mass * ((sets >> token) & 1 == 0)
    chances[0] = 1
    for _ in range(drafts):
        grown = torch.zeros_like(chances)
        for token, mass in enumerate(draft):
            free = ((sets >> token) & 1 == 0) & (chances > 0) & (mass > 0)
            grown[sets[free] + (1 << token)] += chances[free] * mass / rest[free]
        chances = grown
    return chances
