"""`draft_stats` in Triton: each tile of logits is reduced by its own program, a second kernel merges a row's tiles.

One program for a row would leave most of a GPU idle at the few rows of a decode step.
"""

import torch
import triton
import triton.language as tl

TILE = 4096  # logits a program holds in registers: a stretch of one row, or several short rows


@triton.jit
def _reduce(
    logits, row_stride, temperature, heat_stride, places, parts, rows, vocabulary, tall: tl.constexpr, wide: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * tall + tl.arange(0, tall)
    column = tl.program_id(1) * wide + tl.arange(0, wide)
    inside = (row < rows)[:, None] & (column < vocabulary)[None, :]
    x = tl.load(logits + (row * row_stride)[:, None] + column[None, :], mask=inside, other=float("-inf")).to(tl.float32)
    largest, place = tl.max(x, 1, return_indices=True)
    base = tl.where(largest == float("-inf"), 0.0, largest)  # -inf - -inf is not a number
    heat = tl.load(temperature + row * heat_stride, mask=row < rows, other=1.0)
    y = (x - base[:, None]) / heat[:, None]
    e = tl.exp(y)
    slot = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(places + slot, tl.program_id(1) * wide + place, mask=row < rows)
    tl.store(parts + slot * 3, largest, mask=row < rows)
    tl.store(parts + slot * 3 + 1, tl.sum(e, 1), mask=row < rows)
    tl.store(parts + slot * 3 + 2, tl.sum(tl.where(e > 0, e * y, 0.0), 1), mask=row < rows)


@triton.jit
def _merge(
    places, parts, temperature, heat_stride, d2t, token, numbers, rows, blocks, tall: tl.constexpr, most: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * tall + tl.arange(0, tall)
    block = tl.arange(0, most)
    real = row < rows
    inside = real[:, None] & (block < blocks)[None, :]
    slot = ((row * blocks)[:, None] + block[None, :]) * 3
    maxima = tl.load(parts + slot, mask=inside, other=float("-inf"))
    sums = tl.load(parts + slot + 1, mask=inside, other=0.0)
    moments = tl.load(parts + slot + 2, mask=inside, other=0.0)
    largest, first = tl.max(maxima, 1, return_indices=True)
    base = tl.where(largest == float("-inf"), 0.0, largest)
    heat = tl.load(temperature + row * heat_stride, mask=real, other=1.0)
    shift = (maxima - base[:, None]) / heat[:, None]
    scale = tl.exp(shift)
    total = tl.sum(sums * scale, 1)
    # sum of e * y, with y measured from the row's maximum instead of the tile's
    moment = tl.sum(tl.where(scale > 0, scale * (moments + sums * shift), 0.0), 1)
    best = tl.load(places + row * blocks + first, mask=real, other=0).to(tl.int64)
    if d2t is not None:
        best += tl.load(d2t + best, mask=real, other=0)
    tl.store(token + row, best, mask=real)
    tl.store(numbers + row, tl.where(total > 0, 1 / total, 0.0), mask=real)
    tl.store(numbers + rows + row, tl.where(total > 0, tl.log(total) - moment / total, float("inf")), mask=real)
    tl.store(numbers + 2 * rows + row, base / heat + tl.log(total), mask=real)


def launch(logits: torch.Tensor, temperature: torch.Tensor, d2t: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Arguments as `draft_stats.naive` has them; token, max probability, entropy, log-sum-exp."""
    rows, vocabulary = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    token = torch.empty(rows, dtype=torch.int64, device=logits.device)
    numbers = torch.empty(3, rows, device=logits.device)
    if rows:
        columns = min(TILE, triton.next_power_of_2(vocabulary))
        blocks = triton.cdiv(vocabulary, columns)
        places = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
        parts = torch.empty(rows, blocks, 3, device=logits.device)
        heat = (temperature, temperature.stride(0))
        tall = min(TILE // columns, triton.next_power_of_2(rows))
        grid = (triton.cdiv(rows, tall), blocks)
        _reduce[grid](logits, logits.stride(0), *heat, places, parts, rows, vocabulary, tall=tall, wide=columns, num_warps=8)
        _merge[(grid[0],)](
            places,
            parts,
            *heat,
            d2t,
            token,
            numbers,
            rows,
            blocks,
            tall=tall,
            most=triton.next_power_of_2(blocks),
            num_warps=1,
        )
    return token, *numbers.unbind()
