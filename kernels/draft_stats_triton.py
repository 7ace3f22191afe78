"""`draft_stats` in Triton: programs share the tiles of logits, a second kernel merges what a row's programs found.

One program for a row would leave most of a GPU idle at the few rows of a decode step. A lane keeps its own maximum and sums
over all tiles of its program, in powers of 2; only the end goes across lanes, and only `_merge` looks where the maximum is.
"""

import torch
import triton
import triton.language as tl

TILE = 2048  # logits a program holds in registers: a stretch of one row, or several short rows
WARPS = 4
STEPS = 8  # tiles a program takes at most: enough that its end, which goes across lanes, costs little
PROGRAMS = 4096  # it takes fewer tiles rather than that fewer programs than this share an H100: two for each place there
_NEVER = tl.constexpr(-200.0)  # 2^-200 is 0 in float32, and 0 * -200 is 0 where 0 * -inf is not


@triton.jit
def _finite(x):
    return tl.where(x == float("-inf"), 0.0, x)  # -inf - -inf is not a number


@triton.jit
def _scale(temperature):
    return 1.4426950408889634 / temperature  # log2(e): exp2 is one instruction, exp five


@triton.jit
def _reduce(
    logits,
    row_stride,
    temperature,
    heat_stride,
    places,
    parts,
    rows,
    vocabulary,
    steps,
    tall: tl.constexpr,
    deep: tl.constexpr,
    lanes: tl.constexpr,
    group: tl.constexpr,
):
    wide: tl.constexpr = deep * lanes * group
    row = tl.program_id(0).to(tl.int64) * tall + tl.arange(0, tall)
    real = row < rows
    scale = _scale(tl.load(temperature + row * heat_stride, mask=real, other=1.0))
    first = tl.program_id(1) * steps
    largest = tl.full((tall, lanes), float("-inf"), tl.float32)
    total = tl.zeros((tall, lanes), tl.float32)
    moment = tl.zeros((tall, lanes), tl.float32)  # sum of e * y
    place = tl.zeros((tall, lanes), tl.int32) + first * deep
    for tile in range(first, tl.minimum(first + steps, tl.cdiv(vocabulary, wide))):
        column = tile * wide + tl.arange(0, wide)
        inside = real[:, None] & (column < vocabulary)[None, :]
        x = tl.load(logits + (row * row_stride)[:, None] + column[None, :], mask=inside, other=float("-inf"))
        x = tl.reshape(x.to(tl.float32), (tall, deep, lanes, group))  # a group is what a lane loads at once
        tops = tl.max(x, 3)
        new = tl.maximum(largest, tl.max(tops, 1))
        base = _finite(new)
        y = (x - base[:, None, :, None]) * scale[:, None, None, None]
        e = tl.exp2(y)
        shift = tl.maximum((largest - base) * scale[:, None], _NEVER)
        fade = tl.exp2(shift)
        moment = fade * (moment + total * shift) + tl.sum(tl.sum(e * tl.maximum(y, _NEVER), 3), 1)
        total = fade * total + tl.sum(tl.sum(e, 3), 1)
        layer = tile * deep + tl.arange(0, deep)[None, :, None]
        earliest = tl.min(tl.where(tops == new[:, None, :], layer, (tile + 1) * deep), 1)
        place = tl.where(new > largest, earliest, place)
        largest = new
    highest = tl.max(largest, 1)
    shift = tl.maximum((largest - _finite(highest)[:, None]) * scale[:, None], _NEVER)
    fade = tl.exp2(shift)
    start = (place * lanes + tl.arange(0, lanes)[None, :]) * group
    slot = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(places + slot, tl.min(tl.where(largest == highest[:, None], start, vocabulary), 1), mask=real)
    tl.store(parts + slot * 3, highest, mask=real)
    tl.store(parts + slot * 3 + 1, tl.sum(fade * total, 1), mask=real)
    tl.store(parts + slot * 3 + 2, tl.sum(fade * (moment + total * shift), 1), mask=real)


@triton.jit
def _merge(
    logits,
    row_stride,
    temperature,
    heat_stride,
    places,
    parts,
    d2t,
    token,
    numbers,
    rows,
    vocabulary,
    blocks,
    tall: tl.constexpr,
    most: tl.constexpr,
    group: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * tall + tl.arange(0, tall)
    block = tl.arange(0, most)
    real = row < rows
    inside = real[:, None] & (block < blocks)[None, :]
    slot = (row * blocks)[:, None] + block[None, :]
    starts = tl.load(places + slot, mask=inside, other=0)
    maxima = tl.load(parts + slot * 3, mask=inside, other=float("-inf"))
    sums = tl.load(parts + slot * 3 + 1, mask=inside, other=0.0)
    moments = tl.load(parts + slot * 3 + 2, mask=inside, other=0.0)
    heat = tl.load(temperature + row * heat_stride, mask=real, other=1.0)
    largest = tl.max(maxima, 1)
    start = tl.min(tl.where(inside & (maxima == largest[:, None]), starts, vocabulary), 1)
    column = start[:, None] + tl.arange(0, group)[None, :]
    within = real[:, None] & (column < vocabulary)
    x = tl.load(logits + (row * row_stride)[:, None] + column, mask=within, other=float("-inf")).to(tl.float32)
    last = vocabulary - 1  # where nothing but NaN was found; d2t has that place, too
    best = tl.min(tl.where(within & (x == largest[:, None]), column, last), 1).to(tl.int64)
    if d2t is not None:
        best += tl.load(d2t + best, mask=real, other=0)
    base = _finite(largest)
    # sum of e * y, with y measured from the row's maximum instead of the program's
    shift = tl.maximum((maxima - base[:, None]) * _scale(heat)[:, None], _NEVER)
    fade = tl.exp2(shift)
    total = tl.sum(fade * sums, 1)
    moment = tl.sum(fade * (moments + sums * shift), 1) * 0.6931471805599453  # ln(2)
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
        wide = min(TILE, triton.next_power_of_2(vocabulary))
        # a lane loads 16 bytes at once where rows are aligned
        group = min(16 // logits.element_size(), wide) if logits.stride(0) % 16 == 0 else 1
        lanes = min(32 * WARPS, wide // group)
        tiles = triton.cdiv(vocabulary, wide)
        steps = min(STEPS, triton.cdiv(tiles * rows, PROGRAMS))
        blocks = triton.cdiv(tiles, steps)
        places = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
        parts = torch.empty(rows, blocks, 3, device=logits.device)
        tall = min(TILE // wide, triton.next_power_of_2(rows))
        grid = (triton.cdiv(rows, tall), blocks)
        inputs = (logits, logits.stride(0), temperature, temperature.stride(0), places, parts)
        shape = {"tall": tall, "deep": wide // (lanes * group), "lanes": lanes, "group": group}
        _reduce[grid](*inputs, rows, vocabulary, steps, **shape, num_warps=WARPS)
        _merge[(grid[0],)](
            *inputs,
            d2t,
            token,
            numbers,
            rows,
            vocabulary,
            blocks,
            tall=tall,
            most=triton.next_power_of_2(blocks),
            group=group,
            num_warps=1,
        )
    return token, *numbers.unbind()
