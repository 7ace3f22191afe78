"""Hidden states brought to one scale while training, undone in the exported weights.

Some dimensions of a captured state are hundreds of times larger than others (massive activations), which leaves `fc` badly
conditioned. Dividing each dimension by its RMS and multiplying the same column of `fc` is the same function [ours].
"""

import torch

from vllm_edsd.drafters.core import Drafter


def feature_scale(hidden: torch.Tensor, firsts: torch.Tensor) -> torch.Tensor:
    """1 / RMS of each dimension, float32 [n*H]; hidden [N, n*H], firsts int64: the samples' first positions, left out.

    A sequence's first token carries the largest of the massive activations and would hide all others.
    """
    keep = torch.ones(len(hidden), dtype=torch.bool)
    keep[firsts] = False
    return hidden[keep].float().square().mean(0).clamp_min(1e-6).rsqrt()


def folded(drafter: Drafter, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    """The drafter's state dict with `scale` folded into `fc`: what reads unscaled hidden states."""
    weights = dict(drafter.state_dict())
    weights["fc.weight"] = weights["fc.weight"] * scale
    return weights
