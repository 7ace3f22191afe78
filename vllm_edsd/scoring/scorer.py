"""What every scorer is: it may prune the draft before the target sees it, and says what of it is accepted."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from vllm_edsd.scoring.draft import Draft, Draws


@dataclass(frozen=True)
class Verdict:
    """The accepted path and the one token that the target adds to it."""

    slots: torch.Tensor  # int64 [B, S]: the accepted slots from the root's child on, -1 past the end
    following: torch.Tensor  # int64 [B]

    @property
    def lengths(self) -> torch.Tensor:
        """Accepted draft tokens, int64 [B]."""
        return (self.slots >= 0).sum(1)


class Scorer(ABC):
    """Lossless: whatever the draft, the emitted tokens follow the target's distributions.

    `prune` must not look at what chance decided: with sampled draws, whether a slot is kept may depend on the text and on
    tokens drawn in layers above it, never on its own token, its siblings' or later ones. With p = q = (0.9, 0.1), dropping
    the draft whenever the rare token was drawn would emit the likely one with probability 0.99.
    """

    draws: ClassVar[frozenset[Draws]] = frozenset(Draws)  # the drafts that `accept` is lossless for
    layered: ClassVar[bool] = False  # `prune` decides layer by layer, so that drafting can skip what it drops

    def prune(self, draft: Draft) -> Draft:
        """The part of `draft` that the target verifies; all of it unless overridden."""
        return draft

    @abstractmethod
    def accept(self, draft: Draft, target: torch.Tensor, generator: torch.Generator) -> Verdict:
        """Decides over a checked draft. `target` float64 [B, S, V]: the target's distribution after each alive slot."""

    def verify(self, draft: Draft, target: torch.Tensor, generator: torch.Generator) -> Verdict:
        """`accept`, after a look at its arguments: ValueError for draws that this scorer is not lossless for, or shapes."""
        if draft.draws not in self.draws:
            known = ", ".join(sorted(draws.value for draws in self.draws))
            raise ValueError(f"{type(self).__name__} is not lossless for {draft.draws.value} draws, only for: {known}")
        if target.shape != draft.probs.shape:
            raise ValueError(f"target distributions {list(target.shape)} for a draft of {list(draft.probs.shape)}")
        return self.accept(draft, target, generator)
