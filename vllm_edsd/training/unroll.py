"""The unrolled draft: several steps from every position at once (EAGLE-3's training-time test)."""

import math
from collections.abc import Iterator

import torch

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.drafters.layers import DraftCache
from vllm_edsd.training.batches import Batch


def unroll(
    drafter: Drafter, embedding: torch.Tensor, batch: Batch, depth: int, going_on: float = 1.0
) -> Iterator[torch.Tensor]:
    """Yields the chains' states [B_j, Lq, H] after each of `depth` steps, under teacher forcing.

    Step j of the chain that starts at input i takes token i+1+j and predicts token i+2+j. `embedding` is the target's,
    [V, H]. After each step only the first ceil(`going_on` * B_j) samples go on. States of padded or overrunning chains are
    finite and mean nothing.
    """
    chains = batch.valid.shape[1]
    visible, cache = batch.visible(), DraftCache()
    tokens = torch.nn.functional.embedding(batch.following, embedding)
    state = drafter.first(batch.hidden, tokens, batch.positions, cache, visible)
    yield state
    for step in range(1, depth):
        rows = math.ceil(going_on * len(state))
        cache.narrow(rows)
        ahead = shift(tokens[:rows, -chains:], step)
        state = drafter.next(state[:rows], ahead, batch.positions[:rows, -chains:] + step, cache, visible[:rows])
        yield state


def shift(per_chain: torch.Tensor, step: int) -> torch.Tensor:
    """What chain c needs at `step` is what chain c + step needs at step 0; [B, Lq, ...], zeros past the end."""
    if step == 0:
        return per_chain
    moved = torch.zeros_like(per_chain)
    moved[:, :-step] = per_chain[:, step:]
    return moved
