"""SpecTr's k-SEQ: k independent candidates, tried in turn against one discounted target."""

from typing import ClassVar

import torch

from vllm_edsd.scoring.coupling import Coupling
from vllm_edsd.scoring.distributions import normalised, point
from vllm_edsd.scoring.draft import Draws

HALVINGS = 50  # of an interval shorter than the number of candidates: beyond float64's resolution of the discount


def overlap(target: torch.Tensor, draft: torch.Tensor, discount: torch.Tensor) -> torch.Tensor:
    """beta(discount) = sum_x min(q(x), p(x)/discount), [B], of target p and draft q [B, V]."""
    return torch.minimum(draft, target / discount[:, None]).sum(1)


def best_discount(target: torch.Tensor, draft: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The smallest discount in [1, k] that is lossless: 1 - (1 - beta)^k = discount * beta; [B], `count` float [B] is k."""
    low, high = torch.ones_like(count), count.clamp(min=1)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        beta = overlap(target, draft, middle)
        safe = 1 - (1 - beta) ** count <= middle * beta
        low, high = torch.where(safe, low, middle), torch.where(safe, middle, high)
    return high


class KSeq(Coupling):
    """Sun et al. 2023 (arXiv 2310.15141), algorithm 2, for independent draws.

    A candidate x is accepted with min(1, p(x)/(discount * q(x))); after k rejections the token comes from
    p - min(q, p/discount) * (1 - (1 - beta)^k)/beta, normalised. [ours] a residual token that happens to be a candidate
    counts as accepted: its children were drawn without regard to the decision.
    """

    draws: ClassVar[frozenset[Draws]] = frozenset({Draws.INDEPENDENT})

    def couple(
        self, target: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor, present: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        count = present.sum(1).to(target.dtype)
        discount = best_discount(target, draft, count)
        kept = torch.minimum(draft, target / discount[:, None])
        beta = kept.sum(1)
        ratio = torch.where(beta > 0, (1 - (1 - beta) ** count) / beta, 0)
        residual = normalised((target - kept * ratio[:, None]).clamp(min=0), target)
        chances = torch.where(draft > 0, target / (discount[:, None] * draft), 0).clamp(max=1).gather(1, tokens) * present
        emission, left = torch.zeros_like(target), torch.ones_like(beta)
        for candidate in range(tokens.shape[1]):
            emission = emission + point(tokens[:, candidate], target) * (left * chances[:, candidate])[:, None]
            left = left * (1 - chances[:, candidate])
        return emission + residual * left[:, None]
