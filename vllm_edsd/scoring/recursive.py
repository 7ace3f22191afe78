"""Recursive rejection: candidate after candidate, each against what the ones before have left of the target."""

import torch

from vllm_edsd.scoring.coupling import Coupling
from vllm_edsd.scoring.distributions import normalised, point
from vllm_edsd.scoring.draft import Draws
from vllm_edsd.scoring.rejection import reject


class Recursive(Coupling):
    """RSD's recursive rejection sampling (Jeon et al. 2024, arXiv 2402.14160, algorithm 1), for any tree.

    Distinct siblings are judged against the draft distribution without those drawn before; independent ones against the
    whole of it at each round (SpecInfer's multi-round scheme); fixed ones as one-hot proposals.
    """

    def couple(
        self, target: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor, present: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        emission, left = torch.zeros_like(target), torch.ones_like(target[:, 0])
        for candidate in range(tokens.shape[1]):
            token = tokens[:, candidate]
            hit = point(token, target)
            accepted, target = reject(target, hit if draws is Draws.FIXED else draft, token, present[:, candidate])
            emission = emission + hit * (left * accepted)[:, None]
            left = left * (1 - accepted)
            if draws is Draws.DISTINCT:
                draft = normalised(draft * (1 - hit), draft)
        return emission + target * left[:, None]
