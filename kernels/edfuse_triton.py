"""The elementwise parts of `edfuse` in Triton: RMSNorm and SiLU(g) * u, forward and backward, each one pass over memory."""

import torch
import triton
import triton.language as tl

TILE = 1024  # elements a program computes; RMSNorm's have whole rows, at least one
PROGRAMS = 264  # twice the multiprocessors of an H200: each sums the norm weight's gradient over its share of the rows


@triton.jit
def _norm_forward(x, weight, out, inverse, n, h, eps, tall: tl.constexpr, wide: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * tall + tl.arange(0, tall)
    column = tl.arange(0, wide)
    place = (row * h)[:, None] + column[None, :]
    inside = (row < n)[:, None] & (column < h)[None, :]
    e = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + column, mask=column < h, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(e * e, 1) / h + eps)
    tl.store(inverse + row, scale, mask=row < n)
    tl.store(out + place, (e * scale[:, None] * w[None, :]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward(grad, x, weight, inverse, d_x, d_weight, n, h, tall: tl.constexpr, wide: tl.constexpr):
    column = tl.arange(0, wide)
    w = tl.load(weight + column, mask=column < h, other=0.0).to(tl.float32)
    total = tl.zeros((tall, wide), tl.float32)
    for first in range(tl.program_id(0).to(tl.int64) * tall, n, tl.num_programs(0) * tall):
        row = first + tl.arange(0, tall)
        place = (row * h)[:, None] + column[None, :]
        inside = (row < n)[:, None] & (column < h)[None, :]
        scale = tl.load(inverse + row, mask=row < n, other=0.0)[:, None]
        unit = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) * scale
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        total += g * unit
        if d_x is not None:
            g *= w[None, :]
            out = scale * (g - unit * (tl.sum(g * unit, 1) / h)[:, None])
            tl.store(d_x + place, out.to(d_x.dtype.element_ty), mask=inside)
    tl.store(d_weight + tl.program_id(0) * h + column, tl.sum(total, 0), mask=column < h)


@triton.jit
def _gate_forward(gated, raised, out, size, wide: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * wide + tl.arange(0, wide)
    g = tl.load(gated + place, mask=place < size, other=0.0).to(tl.float32)
    u = tl.load(raised + place, mask=place < size, other=0.0).to(tl.float32)
    tl.store(out + place, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=place < size)


@triton.jit
def _gate_backward(grad, gated, raised, product, d_gated, d_raised, size, wide: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * wide + tl.arange(0, wide)
    d = tl.load(grad + place, mask=place < size, other=0.0).to(tl.float32)
    g = tl.load(gated + place, mask=place < size, other=0.0).to(tl.float32)
    u = tl.load(raised + place, mask=place < size, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    silu = g * s
    tl.store(product + place, (silu * u).to(product.dtype.element_ty), mask=place < size)
    tl.store(d_raised + place, (d * silu).to(d_raised.dtype.element_ty), mask=place < size)
    tl.store(d_gated + place, (d * u * (s + silu * (1 - s))).to(d_gated.dtype.element_ty), mask=place < size)


def _tiling(rows: int, hidden: int) -> dict[str, int]:
    wide = triton.next_power_of_2(hidden)
    return {"tall": min(max(TILE // wide, 1), triton.next_power_of_2(rows)), "wide": wide, "num_warps": 8}


def norm_forward(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """RMSNorm of contiguous [N, H], and 1/RMS float32 [N]."""
    rows, hidden = x.shape
    out, inverse = torch.empty_like(x), torch.empty(rows, device=x.device)
    if rows:
        tiling = _tiling(rows, hidden)
        _norm_forward[(triton.cdiv(rows, tiling["tall"]),)](x, weight, out, inverse, rows, hidden, eps, **tiling)
    return out, inverse


def norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor, frozen: bool
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Gradients in x [N, H] (None where x is frozen) and weight [H] of RMSNorm; grad and x contiguous."""
    rows, hidden = x.shape
    d_x = None if frozen else torch.empty_like(x)
    if not rows:
        return d_x, torch.zeros_like(weight)
    tiling = _tiling(rows, hidden)
    programs = min(triton.cdiv(rows, tiling["tall"]), PROGRAMS)
    parts = torch.empty(programs, hidden, device=x.device)
    _norm_backward[(programs,)](grad, x, weight, inverse, d_x, parts, rows, hidden, **tiling)
    return d_x, parts.sum(0).to(weight.dtype)


def gate_forward(gated: torch.Tensor, raised: torch.Tensor) -> torch.Tensor:
    """SiLU(gated) * raised, both contiguous and of one shape."""
    out = torch.empty_like(gated)
    if out.numel():
        _gate_forward[(triton.cdiv(out.numel(), TILE),)](gated, raised, out, out.numel(), wide=TILE)
    return out


def gate_backward(
    grad: torch.Tensor, gated: torch.Tensor, raised: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The product SiLU(gated) * raised again, and the gradients in gated and raised; all contiguous and of one shape."""
    product, d_gated, d_raised = (torch.empty_like(gated) for _ in range(3))
    if product.numel():
        grid = (triton.cdiv(product.numel(), TILE),)
        _gate_backward[grid](grad, gated, raised, product, d_gated, d_raised, product.numel(), wide=TILE)
    return product, d_gated, d_raised
