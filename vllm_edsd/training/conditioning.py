"""Hidden states brought to one scale while training, undone in the exported weights.

Some dimensions of a captured state are hundreds of times larger than others (massive activations), which leaves `fc` badly
conditioned. Dividing each dimension by its RMS and multiplying the same column of `fc` is the same function [ours].
"""

import torch
from torch.nn import functional as F

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.drafters.normed import NormedDrafter


def feature_scale(hidden: torch.Tensor, firsts: torch.Tensor) -> torch.Tensor:
    """1 / RMS of each dimension, float32 [n*H]; hidden [N, n*H], firsts int64: the samples' first positions, left out.

    A sequence's first token carries the largest of the massive activations and would hide all others.
    """
    keep = torch.ones(len(hidden), dtype=torch.bool)
    keep[firsts] = False
    return hidden[keep].float().square().mean(0).clamp_min(1e-6).rsqrt()


def condition(drafter: Drafter, hidden: torch.Tensor, firsts: torch.Tensor, fresh: bool = True) -> torch.Tensor:
    """What captured states are multiplied by while training, float32 [n*H]; arguments as `feature_scale` has them.

    A drafter that norms the states itself reads them as they are, and its norms start at the scale of what they put out.
    One that is not `fresh` computes what it did before.
    """
    if not isinstance(drafter, NormedDrafter):
        scale = feature_scale(hidden, firsts)
        if not fresh:
            drafter.fc.weight.data /= scale
        return scale
    if fresh:
        parts = hidden.float().chunk(len(drafter.fc_norm), dim=-1)
        normed = torch.cat([F.rms_norm(part, part.shape[-1:]) for part in parts], dim=-1)
        starts = feature_scale(normed, firsts).chunk(len(drafter.fc_norm))
        with torch.no_grad():
            for norm, start in zip(drafter.fc_norm, starts, strict=True):
                norm.get_parameter("weight").copy_(start)
    return torch.ones(hidden.shape[-1])


def folded(drafter: Drafter, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """The drafter's state dict with `scale` folded into `fc`: what reads unscaled hidden states."""
    weights = dict(drafter.state_dict())
    weights["fc.weight"] = weights["fc.weight"] * scale
    return weights
