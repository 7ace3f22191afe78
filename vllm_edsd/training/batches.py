"""Batches of samples, in an order that depends on the seed and the epoch alone, so that a resumed run continues exactly.

Samples are padded on the left: the chains, which start near the answer's beginning, are then every row's last positions.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

import torch

from vllm_edsd.training.samples import Sample

POOL = 1024  # samples sorted by length at a time, so that rows of a batch are of like length


@dataclasses.dataclass(frozen=True)
class Indexed:
    """A sample, its shard and place in it, and where its features begin."""

    sample: Sample
    shard: int
    place: int
    begin: int

    @property
    def chains(self) -> int:
        """Positions from which a draft can start: from the last prompt token to the last but one token."""
        return len(self.sample.tokens) - self.sample.answer


@dataclasses.dataclass(frozen=True)
class Batch:
    """B samples, padded on the left to L inputs; the last Lq inputs are the chains.

    Input position i holds the target's state after token i and, as `following`, token i+1. Over inputs [B, L]: `hidden`
    [B, L, n*H], `following` int64, `positions` int64, `real` bool. Over the target's predictions at positions i+1 for the
    chains' i [B, Lq]: `final` [B, Lq, H], `argmax` int64, `valid` bool.
    """

    hidden: torch.Tensor
    following: torch.Tensor
    positions: torch.Tensor
    real: torch.Tensor
    final: torch.Tensor
    argmax: torch.Tensor
    valid: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in dataclasses.fields(self)))

    def visible(self) -> torch.Tensor:
        """bool [B, Lq, L]: the chain that starts at input i sees the real inputs up to i."""
        length, chains = self.real.shape[1], self.valid.shape[1]
        causal = torch.ones(chains, length, dtype=torch.bool, device=self.real.device).tril(length - chains)
        # A padded chain sees itself, so that its softmax is finite; it never counts.
        own = torch.eye(length, dtype=torch.bool, device=self.real.device)[length - chains :]
        return (causal & self.real[:, None]) | own


def index(samples: Sequence[Sample], per_shard: Sequence[int]) -> list[Indexed]:
    """Samples in file order with their shard and offset; `per_shard` is the number of samples in each shard."""
    found, rest = [], iter(samples)
    for shard, count in enumerate(per_shard):
        begin = 0
        for place in range(count):
            sample = next(rest)
            found.append(Indexed(sample, shard, place, begin))
            begin += len(sample.tokens)
    return found


def plan(samples: Sequence[Indexed], batch_tokens: int, seed: int, epoch: int) -> list[list[Indexed]]:
    """The batches of one epoch: at most `batch_tokens` chains each, one sample at least."""
    shuffler = random.Random(f"{seed}/{epoch}")
    order = list(samples)
    shuffler.shuffle(order)
    batches: list[list[Indexed]] = []
    for start in range(0, len(order), POOL):
        pool = sorted(order[start : start + POOL], key=lambda item: (item.chains // 32, item.sample.answer))
        current: list[Indexed] = []
        for item in pool:
            if current and sum(other.chains for other in current) + item.chains > batch_tokens:
                batches.append(current)
                current = []
            current.append(item)
        batches.append(current)
    shuffler.shuffle(batches)
    for batch in batches:
        shuffler.shuffle(batch)  # the first samples of a batch are drafted deeper than the last
    return batches


def collate(items: Sequence[Indexed], states: Sequence[Mapping[str, torch.Tensor]], chains: int = 0) -> Batch:
    """Pads `items` on the left, each with its `states`: hidden [n, layers * H], final [n, H] and argmax [n].

    Lq is that of the longest answer, or `chains` if that is more: a part of a batch has the chains of the whole, since those
    that start just before an answer reach it at later steps.
    """
    chains = max(chains, *(item.chains for item in items))
    length = max(chains, *(len(item.sample.tokens) - 1 for item in items))
    count = len(items)
    inputs: dict[str, torch.Tensor] = {}
    following = torch.zeros(count, length, dtype=torch.long)
    positions = torch.zeros(count, length, dtype=torch.long)
    real = torch.zeros(count, length, dtype=torch.bool)
    valid = torch.zeros(count, chains, dtype=torch.bool)
    for row, (item, part) in enumerate(zip(items, states, strict=True)):
        tokens = item.sample.tokens.long()
        size = len(tokens) - 1
        if not inputs:
            inputs["hidden"] = part["hidden"].new_zeros(count, length, part["hidden"].shape[-1])
            inputs["final"] = part["final"].new_zeros(count, chains, part["final"].shape[-1])
            inputs["argmax"] = part["argmax"].new_zeros(count, chains, dtype=torch.long)
        inputs["hidden"][row, length - size :] = part["hidden"][:-1]
        following[row, length - size :] = tokens[1:]
        positions[row, length - size :] = torch.arange(size)
        real[row, length - size :] = True
        # A chain at input i predicts token i+2, whose distribution the target gives at position i+1. The last position
        # predicts beyond the text: no chain is valid there, but its row keeps the shapes even.
        shown = item.chains
        inputs["final"][row, chains - shown :] = part["final"][-shown:]
        inputs["argmax"][row, chains - shown :] = part["argmax"][-shown:]
        valid[row, chains - shown : chains - 1] = True
    return Batch(following=following, positions=positions, real=real, valid=valid, **inputs)
