"""`budget` in Triton: one program that keeps all survivals in registers and finds the B-th best by halving its bit pattern.

Survivals lie in [0, 1], where a float's bits grow with its value: 30 halvings find any of them exactly, without a sort.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _admit(chances, lengths, tokens, survival, counts, requests, positions, padded_r: tl.constexpr, padded_k: tl.constexpr):
    request = tl.arange(0, padded_r)
    real = request < requests
    position = tl.arange(0, padded_k)
    length = tl.load(lengths + request, mask=real, other=0)
    running = tl.full((padded_r,), 1.0, tl.float32)
    tile = tl.zeros((padded_k, padded_r), tl.float32)
    for k in range(positions):
        alive = real & (k < length)
        running = tl.where(alive, running * tl.load(chances + request * positions + k, mask=alive, other=0.0), 0.0)
        tl.store(survival + request * positions + k, running, mask=real)
        tile = tl.where((position == k)[:, None], running[None, :], tile)
    bits = tile.to(tl.int32, bitcast=True)
    wanted = tl.load(tokens)
    low = tl.full((), 0, tl.int32)  # at least `wanted` survivals have these bits or more, unless it stays 0
    for step in range(30):
        middle = low + (1 << (29 - step))
        enough = tl.sum(tl.sum((bits >= middle).to(tl.int32), 1), 0) >= wanted
        low = tl.where(enough, middle, low)
    above = bits > low
    tied = ((bits == low) & (low > 0)).to(tl.int32)
    left = wanted - tl.sum(tl.sum(above.to(tl.int32), 1), 0)
    across = tl.sum(tied, 1)
    earlier = tl.cumsum(across, 0) - across
    rank = earlier[:, None] + tl.cumsum(tied, 1) - tied
    admitted = above | ((tied > 0) & (rank < left))
    tl.store(counts + request, tl.sum(admitted.to(tl.int32), 0), mask=real)


def launch(chances: torch.Tensor, lengths: torch.Tensor, tokens: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments as `budget.naive` has them, contiguous."""
    requests, positions = chances.shape
    survival = torch.empty_like(chances)
    counts = torch.empty(requests, dtype=torch.int32, device=chances.device)
    if requests:
        if not isinstance(tokens, torch.Tensor):
            tokens = torch.full((1,), tokens, dtype=torch.int32, device=chances.device)
        padded = {"padded_r": triton.next_power_of_2(requests), "padded_k": triton.next_power_of_2(max(positions, 1))}
        _admit[(1,)](chances, lengths, tokens, survival, counts, requests, positions, num_warps=8, **padded)
    return survival, counts
