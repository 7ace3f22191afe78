"""EDTrain: easy tokens first (entropy mask), short drafts first (Step-n). Both follow the progress of the run."""

import math

import torch

from vllm_edsd.training.recipe import Curriculum

LARGEST_SHARE = 0.4


def stage(progress: float, periods: int) -> int:
    """t = floor(u * T), 0..T-1, for progress u in [0, 1]."""
    return min(int(progress * periods), periods - 1)


def masked_share(curriculum: Curriculum, progress: float) -> float:
    """r_t = clip((T-t-1) * s, 0, 0.4): the share of positions dropped, 0 in the last stage (EDTrain's entropy mask)."""
    t = stage(progress, curriculum.periods)
    return min(max((curriculum.periods - t - 1) * curriculum.entropy_rate, 0.0), LARGEST_SHARE)


def depth(curriculum: Curriculum, progress: float, max_depth: int) -> int:
    """n_t = ceil(1 + (S_max-1) * t/(T-1)) unroll steps (Step-n), or S_max where the depth does not grow."""
    if not curriculum.grow_depth:
        return max_depth
    t = stage(progress, curriculum.periods)
    return math.ceil(1 + (max_depth - 1) * t / (curriculum.periods - 1))


def easy_tokens(entropy: torch.Tensor, share: float) -> torch.Tensor:
    """bool [R]: which tokens stay, all but the top `share` of them by target entropy, float [R] in nats.

    The share is of this batch (the paper's local top-r).
    """
    keep = torch.ones(len(entropy), dtype=torch.bool, device=entropy.device)
    keep[entropy.topk(int(share * len(entropy))).indices] = False
    return keep
