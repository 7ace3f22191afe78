"""Standard speculative sampling: one candidate, accepted with probability min(1, p/q)."""

import torch

from vllm_edsd.scoring.coupling import Coupling
from vllm_edsd.scoring.distributions import normalised, point
from vllm_edsd.scoring.draft import Draws


def reject(
    target: torch.Tensor, proposal: torch.Tensor, token: torch.Tensor, present: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One round: the chance [B] that `token` [B], drawn from `proposal` [B, V], is accepted, and the residual [B, V].

    Accepts with min(1, p/q); after a rejection the target is max(0, p - q), normalised (Leviathan et al. 2023, algorithm 1;
    Chen et al. 2023). Where not `present`, bool [B], nothing is accepted and the target stays.
    """
    wanted, offered = (chances.gather(1, token[:, None])[:, 0] for chances in (target, proposal))
    possible = present & (offered > 0)
    accepted = torch.where(possible, (wanted / offered).clamp(max=1), 0)
    residual = normalised((target - proposal).clamp(min=0), target)
    return accepted, torch.where(possible[:, None], residual, target)


class Standard(Coupling):
    """Leviathan et al. 2023 and Chen et al. 2023, for chains; ValueError for a tree."""

    def couple(
        self, target: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor, present: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        if tokens.shape[1] > 1:
            raise ValueError(f"standard rejection takes one candidate, not {tokens.shape[1]}: use the scorer 'recursive'")
        hit = point(tokens[:, 0], target)
        accepted, residual = reject(target, hit if draws is Draws.FIXED else draft, tokens[:, 0], present[:, 0])
        return hit * accepted[:, None] + residual * (1 - accepted)[:, None]
