"""A batch of drafts: chains are trees, and so are several drafts at once."""

from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import torch


class Draws(Enum):
    """How the children of a slot came about: acceptance has to know."""

    FIXED = "fixed"  # by the text alone: the most likely tokens, a lookup; the proposal counts as one-hot
    INDEPENDENT = "independent"  # each child drawn from the slot's distribution; siblings may repeat
    DISTINCT = "distinct"  # drawn without replacement; siblings stand in the order of drawing


def lineage(parents: torch.Tensor) -> torch.Tensor:
    """Who descends from whom: bool [B, S, S], true at [b, s, a] where a is s or an ancestor of s.

    `parents` int64 [B, S] names earlier slots; a slot that is its own parent follows the text.
    """
    rows, slots = parents.shape
    lines = torch.zeros(rows, slots, slots, dtype=torch.bool, device=parents.device)
    everyone = torch.arange(rows, device=parents.device)
    for slot in range(slots):
        lines[:, slot] = lines[everyone, parents[:, slot]]
        lines[:, slot, slot] = True
    return lines


def first_true(mask: torch.Tensor) -> torch.Tensor:
    """Columns where `mask` [B, N] is true, before the others and in order: int64 [B, W], W the most that a row has."""
    return mask.int().argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(1).max())]


@dataclass(frozen=True)
class Draft:
    """B trees of S slots over a vocabulary of V. Slot 0, the root, is the last token of the text; the rest are drafted.

    A parent stands before its children and siblings in the order of drawing. A slot that is not alive is padding, was never
    drawn, or was pruned; so are all that descend from it. ValueError where shapes or this order are violated.
    """

    tokens: torch.Tensor  # int64 [B, S]
    parents: torch.Tensor  # int64 [B, S]; the root is its own parent
    alive: torch.Tensor  # bool [B, S]
    probs: torch.Tensor  # float [B, S, V]: what the drafter would draw the slot's children from; all 0 where it cannot tell
    draws: Draws

    def __post_init__(self) -> None:
        slots = torch.arange(self.tokens.shape[1], device=self.parents.device)
        if self.probs.shape[:2] != self.tokens.shape or self.alive.shape != self.tokens.shape:
            raise ValueError(
                f"tokens {list(self.tokens.shape)}, alive {list(self.alive.shape)}, probs {list(self.probs.shape)} disagree"
            )
        if (self.parents[:, 1:] >= slots[1:]).any() or self.parents[:, 0].any():
            raise ValueError("a parent has to stand before its children, and the root has to be slot 0")
        if not self.alive[:, 0].all() or (self.alive & ~self.alive.gather(1, self.parents)).any():
            raise ValueError("an alive slot has a dead ancestor: keep sets that are closed under ancestors")

    @classmethod
    def chain(cls, tokens: torch.Tensor, probs: torch.Tensor, draws: Draws, lengths: torch.Tensor | None = None) -> "Draft":
        """One token after the other: `tokens` [B, K+1] with the root, `probs` [B, K+1, V], `lengths` [B] drafted (all K)."""
        slots = torch.arange(tokens.shape[1], device=tokens.device)
        parents = (slots - 1).clamp(min=0).expand_as(tokens)
        alive = torch.ones_like(tokens, dtype=torch.bool) if lengths is None else slots <= lengths[:, None]
        return cls(tokens, parents, alive, probs, draws)

    def extended(self, tokens: torch.Tensor, parents: torch.Tensor, alive: torch.Tensor) -> "Draft":
        """With further slots [B, N], their distributions still unknown; one with a dead parent is dead."""
        parents = torch.cat([self.parents, parents], 1)
        return Draft(
            torch.cat([self.tokens, tokens], 1),
            parents,
            torch.cat([self.alive, alive & self.alive.gather(1, parents[:, -tokens.shape[1] :])], 1),
            torch.cat([self.probs, self.probs.new_zeros(*tokens.shape, self.probs.shape[-1])], 1),
            self.draws,
        )

    def pruned(self, keep: torch.Tensor) -> "Draft":
        """Only the slots in `keep`, bool [B, S]; the root stays."""
        alive = self.alive & keep
        alive[:, 0] = True
        return replace(self, alive=alive)

    @cached_property
    def depths(self) -> torch.Tensor:
        """Tokens drafted up to and with each slot, int64 [B, S]; 0 at the root."""
        return lineage(self.parents).sum(-1) - 1

    @cached_property
    def ranks(self) -> torch.Tensor:
        """How many siblings stand before each slot, int64 [B, S]."""
        before = torch.ones(2 * [self.tokens.shape[1]], dtype=torch.bool, device=self.tokens.device).tril(-1)
        before[:, 0] = False
        return ((self.parents[:, :, None] == self.parents[:, None]) & before).sum(-1)
