"""Which tokens a training step leaves out: the top share by a score, of this batch or of the run's last positions."""

import random
from collections.abc import Callable

import torch

WINDOW = 32_768  # positions that the running distribution of scores remembers

# (target entropy [R], this step's generator) to scores [R]; the highest are dropped
Score = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def _random(entropy: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(len(entropy), generator=generator).to(entropy.device)


MASKS: dict[str, Score | None] = {
    "entropy": lambda entropy, _: entropy,
    "reversed": lambda entropy, _: -entropy,
    "random": _random,
    "none": None,
}


def _local(scores: torch.Tensor, share: float, recent: torch.Tensor) -> torch.Tensor:
    """The paper's top-r: exactly the share of this batch."""
    keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    keep[scores.topk(int(share * len(scores))).indices] = False
    return keep


def _global(scores: torch.Tensor, share: float, recent: torch.Tensor) -> torch.Tensor:
    """[ours] What lies above the quantile of the last positions: a hard batch loses more, an easy one less."""
    dropped = int(share * len(recent))
    if not dropped:
        return torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    return scores < recent.topk(dropped).values[-1]


SELECTIONS = {"local": _local, "global": _global}


class Mask:
    """A mask and its selection by name. `recent` are the scores of the run's last positions, kept for `global` alone."""

    def __init__(self, mask: str, selection: str, seed: int, device: torch.device):
        self.score, self.selection, self.seed = MASKS[mask], selection, seed
        self.recent = torch.empty(0, device=device)

    def keep(self, entropy: torch.Tensor, share: float, step: int) -> torch.Tensor:
        """bool [R]: which tokens stay, all but the top `share`; entropy float [R] in nats. Depends on seed and `step`."""
        if self.score is None:
            return torch.ones(len(entropy), dtype=torch.bool, device=entropy.device)
        generator = torch.Generator().manual_seed(random.Random(f"{self.seed}/{step}").getrandbits(63))
        scores = self.score(entropy, generator)
        if self.selection == "global":
            self.recent = torch.cat([self.recent, scores])[-WINDOW:]
        return SELECTIONS[self.selection](scores, share, self.recent)
