"""What the reference engine asks of a language model: logits after every slot of a tree."""

from abc import ABC, abstractmethod

import torch


class Session(ABC):
    """B texts under way. What is fed hangs below the committed text, as a tree, until `commit` makes a path of it text."""

    @abstractmethod
    def feed(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Logits float [B, N, V] after each of `tokens` int64 [B, N].

        Slots are numbered from the last commit on; `parents` int64 [B, N] names a slot's parent, itself where it follows
        the text. A slot sees the text, its ancestors and itself.
        """

    @abstractmethod
    def commit(self, slots: torch.Tensor) -> None:
        """Makes the path `slots`, int64 [B, D] with -1 as padding, the end of the text, and forgets the other slots."""

    @abstractmethod
    def select(self, rows: torch.Tensor) -> None:
        """Goes on only with the texts where `rows`, bool [B], is true."""


class Model(ABC):
    """A causal language model. `vocabulary` is its number of logits."""

    vocabulary: int

    @abstractmethod
    def start(self, rows: int) -> Session:
        """A session of `rows` empty texts."""
