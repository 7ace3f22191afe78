"""The unrolled draft: several steps from every position at once (EAGLE-3's training-time test)."""

from collections.abc import Iterator, Sequence

import torch

from vllm_edsd.drafters.core import Drafter
from vllm_edsd.drafters.layers import DraftCache
from vllm_edsd.training.batches import Batch


def unroll(drafter: Drafter, embedding: torch.Tensor, batch: Batch, rows: Sequence[int]) -> Iterator[torch.Tensor]:
    """Yields the chains' states [rows[j], Lq, H] after each unroll step j, under teacher forcing.

    Step j of the chain that starts at input i takes token i+1+j and predicts token i+2+j. `embedding` is the target's,
    [V, H]. `rows` starts with all samples and never grows: the first rows[j] are drafted at step j, and where there are none
    it ends. States of padded or overrunning chains are finite and mean nothing.
    """
    chains = batch.valid.shape[1]
    visible, cache = batch.visible(), DraftCache()
    tokens = torch.nn.functional.embedding(batch.following, embedding)
    state = drafter.first(batch.hidden, tokens, batch.positions, cache, visible)
    yield state
    for step, count in enumerate(rows[1:], 1):
        if not count:
            return
        cache.narrow(count)
        ahead = shift(tokens[:count, -chains:], step)
        state = drafter.next(state[:count], ahead, batch.positions[:count, -chains:] + step, cache, visible[:count])
        yield state


def shift(per_chain: torch.Tensor, step: int) -> torch.Tensor:
    """What chain c needs at `step` is what chain c + step needs at step 0; [B, Lq, ...], zeros past the end."""
    if step == 0:
        return per_chain
    moved = torch.zeros_like(per_chain)
    moved[:, :-step] = per_chain[:, step:]
    return moved
