"""Small targets whose output distribution is known exactly, and the statistics of what an engine makes of them."""

from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare


def follow(first: torch.Tensor, second: torch.Tensor, third: torch.Tensor | None = None) -> torch.Tensor:
    """Exact probabilities of all sequences: `first` [V], `second` [V, V] by the first token, `third` [V, V, V]; flat."""
    found = first[:, None] * second
    return (found if third is None else found[..., None] * third).flatten()


def p_value(counts: torch.Tensor, chances: torch.Tensor) -> float:
    """Chi-square of `counts` against `chances`, cells expecting fewer than 5 pooled; 0 where the impossible happened."""
    wanted = chances * counts.sum()
    if counts[chances == 0].sum():
        return 0.0
    common = wanted >= 5
    pooled = [torch.cat([each[common], each[~common].sum()[None]]) for each in (counts.double(), wanted)]
    kept = pooled[1] > 0
    return float(chisquare(pooled[0][kept].numpy(), pooled[1][kept].numpy()).pvalue)


@pytest.fixture(scope="session")
def p_of() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The p-value of generated sequences, int64 [N, 2 or 3], given the exact distributions of each next token."""

    def measure(tokens: torch.Tensor, *nexts: torch.Tensor) -> float:
        places = len(nexts[0]) ** torch.arange(tokens.shape[1] - 1, -1, -1)
        exact = follow(*nexts)
        return p_value(torch.bincount((tokens * places).sum(1), minlength=len(exact)), exact)

    return measure
