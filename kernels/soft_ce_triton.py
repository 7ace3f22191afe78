"""`soft_ce` in Triton, chunked over the vocabulary: one kernel for a row's loss and four numbers, one for the gradient.

d kl / d draft_v = q_v - p_v
d tv / d draft_v = q_v (share - c_v),   c_v = [q_v < p_v] + [q_v = p_v] / 2,   share = sum_v q_v c_v
"""

from typing import Any

import torch
import triton
import triton.language as tl

TILE = 4096  # logits of each side that a program holds in registers: a chunk of one row, or several short rows


@triton.jit
def _tile(logits, row, keep, column, v):
    inside = keep[:, None] & (column < v)[None, :]
    place = logits + (row * v)[:, None] + column[None, :]
    return tl.load(place, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def _finite(x):
    return tl.where(x == float("-inf"), 0.0, x)  # -inf - -inf is not a number


@triton.jit
def _below(p, q):
    return tl.where(q < p, 1.0, tl.where(q == p, 0.5, 0.0))


@triton.jit
def _kept(mask, row, n):
    keep = row < n
    if mask is not None:
        keep = keep & (tl.load(mask + row, mask=keep, other=0) != 0)
    return keep


@triton.jit
def _forward(draft, target, mask, losses, numbers, n, v, loss: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * tall + tl.arange(0, tall)
    keep = _kept(mask, row, n)
    stop = tl.max(keep.to(tl.int32), 0) * v  # nothing is read for rows that are all masked
    max_d = tl.full((tall,), float("-inf"), tl.float32)
    max_t = tl.full((tall,), float("-inf"), tl.float32)
    sum_d = tl.zeros((tall,), tl.float32)
    sum_t = tl.zeros((tall,), tl.float32)
    cross = tl.zeros((tall,), tl.float32)  # sum of e^t (t - d)
    for start in range(0, stop, wide):
        column = start + tl.arange(0, wide)
        d = _tile(draft, row, keep, column, v)
        t = _tile(target, row, keep, column, v)
        new_d = tl.maximum(max_d, tl.max(d, 1))
        new_t = tl.maximum(max_t, tl.max(t, 1))
        base_d, base_t = _finite(new_d), _finite(new_t)
        sum_d = sum_d * tl.exp(max_d - base_d) + tl.sum(tl.exp(d - base_d[:, None]), 1)
        e = tl.exp(t - base_t[:, None])
        fade = tl.exp(max_t - base_t)
        sum_t = sum_t * fade + tl.sum(e, 1)
        cross = tl.where(fade > 0, cross * fade, 0.0) + tl.sum(tl.where(e > 0, e * (t - d), 0.0), 1)
        max_d, max_t = new_d, new_t
    lse_d = tl.where(keep, max_d + tl.log(sum_d), 0.0)
    lse_t = tl.where(keep, max_t + tl.log(sum_t), 0.0)
    value = cross / sum_t - lse_t + lse_d
    share = tl.zeros((tall,), tl.float32)
    weight = tl.full((tall,), 1.0, tl.float32)
    if loss != "kl":
        tv = tl.zeros((tall,), tl.float32)
        for start in range(0, stop, wide):
            column = start + tl.arange(0, wide)
            q = tl.exp(_tile(draft, row, keep, column, v) - lse_d[:, None])
            p = tl.exp(_tile(target, row, keep, column, v) - lse_t[:, None])
            tv += tl.sum(tl.abs(p - q), 1) / 2
            share += tl.sum(q * _below(p, q), 1)
        if loss == "tv":
            weight = tl.zeros((tall,), tl.float32)
            value = tv
        else:
            weight = tl.exp(3 * (tv - 1))
            value = weight * value + (1 - weight) * tv
    tl.store(losses + row, tl.where(keep, value, 0.0), mask=row < n)
    tl.store(numbers + row, lse_d, mask=row < n)
    tl.store(numbers + n + row, lse_t, mask=row < n)
    tl.store(numbers + 2 * n + row, share, mask=row < n)
    tl.store(numbers + 3 * n + row, weight, mask=row < n)


@triton.jit
def _backward(draft, target, mask, upstream, numbers, out, n, v, loss: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * tall + tl.arange(0, tall)
    keep = _kept(mask, row, n)
    column = tl.program_id(1) * wide + tl.arange(0, wide)
    lse_d = tl.load(numbers + row, mask=keep, other=0.0)
    lse_t = tl.load(numbers + n + row, mask=keep, other=0.0)
    q = tl.exp(_tile(draft, row, keep, column, v) - lse_d[:, None])
    p = tl.exp(_tile(target, row, keep, column, v) - lse_t[:, None])
    grad = q - p
    if loss != "kl":
        share = tl.load(numbers + 2 * n + row, mask=keep, other=0.0)[:, None]
        weight = tl.load(numbers + 3 * n + row, mask=keep, other=0.0)[:, None]
        grad = weight * grad + (1 - weight) * q * (share - _below(p, q))
    scale = tl.load(upstream + row, mask=keep, other=0.0)
    grad = tl.where(keep[:, None], grad * scale[:, None], 0.0)
    inside = (row < n)[:, None] & (column < v)[None, :]
    tl.store(out + (row * v)[:, None] + column[None, :], grad.to(out.dtype.element_ty), mask=inside)


def _tiling(rows: int, vocabulary: int, loss: str) -> dict[str, Any]:
    columns = min(TILE, triton.next_power_of_2(vocabulary))
    tall = min(TILE // columns, triton.next_power_of_2(rows))
    return {"loss": loss, "tall": tall, "wide": columns, "num_warps": 8}


def forward(
    draft: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, loss: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Row losses float32 [N], and the numbers float32 [4, N] that `gradient` needs; logits are contiguous."""
    rows, vocabulary = draft.shape
    losses = torch.empty(rows, device=draft.device)
    numbers = torch.empty(4, rows, device=draft.device)
    if rows:
        tiling = _tiling(rows, vocabulary, loss)
        grid = (triton.cdiv(rows, tiling["tall"]),)
        _forward[grid](draft, target, mask, losses, numbers, rows, vocabulary, **tiling)
    return losses, numbers


def gradient(
    draft: torch.Tensor,
    target: torch.Tensor,
    mask: torch.Tensor | None,
    loss: str,
    numbers: torch.Tensor,
    upstream: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """d(sum of upstream [N] * losses) / d draft into `out` [N, V], which may be `draft` itself; all contiguous."""
    rows, vocabulary = draft.shape
    if rows:
        tiling = _tiling(rows, vocabulary, loss)
        grid = (triton.cdiv(rows, tiling["tall"]), triton.cdiv(vocabulary, tiling["wide"]))
        _backward[grid](draft, target, mask, upstream, numbers, out, rows, vocabulary, **tiling)
    return out
