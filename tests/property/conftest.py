"""Chance taken out: the same examples in each run, and every draft that can be drawn, with its probability."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import settings

from vllm_edsd.scoring.draft import Draws

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=120, database=None)
settings.load_profile("repeatable")


def all_candidates(draft: torch.Tensor, count: int, draws: Draws) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every ordered tuple of `count` candidates: tokens [N, M], which exist [N, M], their probability [N]."""
    if draws is Draws.FIXED:
        best = draft.topk(min(count, len(draft)))
        return best.indices[None], best.values[None] > 0, torch.ones(1).double()
    support = draft.nonzero()[:, 0].tolist()
    wanted = count if draws is Draws.INDEPENDENT else min(count, len(support))
    tuples, chances = [], []
    for candidates in product(support, repeat=wanted):
        left, chance = draft.clone(), 1.0
        for token in candidates:
            chance *= float(left[token] / left.sum()) if left.sum() > 0 else 0.0
            if draws is Draws.DISTINCT:
                left[token] = 0
        if chance:
            tuples.append([*candidates, *[0] * (count - wanted)])
            chances.append(chance)
    tokens = torch.tensor(tuples).view(len(tuples), count)
    present = (torch.arange(count) < wanted).expand_as(tokens)
    return tokens, present, torch.tensor(chances, dtype=torch.float64)


@pytest.fixture(scope="session")
def candidates() -> Callable[[torch.Tensor, int, Draws], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    return all_candidates
