"""A language model that is a table: the next token depends on the last one alone. For tests and analysis."""

import torch

from vllm_edsd.reference.model import Model, Session


class Table(Model):
    """`logits` float [V, V]: row t holds what follows token t."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.vocabulary = logits, len(logits)

    def start(self, rows: int) -> Session:
        return _TableSession(self.logits)


class _TableSession(Session):
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def feed(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        return self.logits[tokens]

    def commit(self, slots: torch.Tensor) -> None:
        """A table remembers nothing."""

    def select(self, rows: torch.Tensor) -> None:
        """All texts look the same to a table."""
