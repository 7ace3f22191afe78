"""EDSD's gated fusion of the state and the next token's embedding, with the elementwise work fused round the products.

    z = W_down (SiLU(W_gate x) * W_up RMSNorm(e))          (EDFuse, ACL 2026)

The products stay with cuBLAS. For the backward pass the Triton path keeps x, e, one number a row and the two products; the
normed embedding and the gated product, which autograd would keep too, are made again.
"""

from typing import Any

import torch
from torch.nn import functional as F

from vllm_edsd.kernels.dispatch import use_triton

DTYPES = (torch.float32, torch.bfloat16)
WIDEST = 16384  # hidden size that one program holds


def naive(
    state: torch.Tensor,
    embedding: torch.Tensor,
    norm: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """The definition; arguments as `edfuse` has them."""
    normed = F.rms_norm(embedding, norm.shape, norm, eps)
    return F.linear(F.silu(F.linear(state, gate)) * F.linear(normed, up), down)


class _EDFuse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        state: torch.Tensor,
        embedding: torch.Tensor,
        norm: torch.Tensor,
        gate: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        from vllm_edsd.kernels import edfuse_triton

        normed, inverse = edfuse_triton.norm_forward(embedding, norm, eps)
        gated, raised = state @ gate.T, normed @ up.T
        ctx.save_for_backward(state, embedding, norm, gate, up, down, inverse, gated, raised)
        ctx.eps = eps
        return edfuse_triton.gate_forward(gated, raised) @ down.T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from vllm_edsd.kernels import edfuse_triton

        state, embedding, norm, gate, up, down, inverse, gated, raised = ctx.saved_tensors
        grad = upstream[0].contiguous()
        product, d_gated, d_raised = edfuse_triton.gate_backward(grad @ down, gated, raised)
        d_down = grad.T @ product
        normed, _ = edfuse_triton.norm_forward(embedding, norm, ctx.eps)
        frozen = not ctx.needs_input_grad[1]  # a drafter's embedding is the target's
        d_embedding, d_norm = edfuse_triton.norm_backward(d_raised @ up, embedding, norm, inverse, frozen)
        d_state = d_gated @ gate if ctx.needs_input_grad[0] else None
        return d_state, d_embedding, d_norm, d_gated.T @ state, d_raised.T @ normed, d_down, None


def edfuse(
    state: torch.Tensor,
    embedding: torch.Tensor,
    norm: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    eps: float = 1e-6,
) -> torch.Tensor:
    """state and embedding [..., H] to [..., H]; differentiable once.

    norm [H] is RMSNorm's weight, gate and up [I, H], down [H, I], as nn.Linear has them; all of one dtype, float32 or
    bfloat16 (RMSNorm, SiLU and the gated product are computed in float32 within). No rows give no rows. Raises ValueError
    for other shapes or dtypes.
    """
    hidden, width = state.shape[-1], gate.shape[0]
    shapes = {
        "state": (state, state.shape),
        "embedding": (embedding, state.shape),
        "norm": (norm, (hidden,)),
        "gate": (gate, (width, hidden)),
        "up": (up, (width, hidden)),
        "down": (down, (hidden, width)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor.shape != torch.Size(shape) or tensor.dtype != state.dtype or tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}; give {list(shape)} in state's dtype, float32 or bfloat16"
            )
    weights = (norm, gate, up, down)
    if hidden > WIDEST or not use_triton(state, embedding, *weights):
        return naive(state, embedding, *weights, eps)
    rows = (state.reshape(-1, hidden), embedding.reshape(-1, hidden).contiguous())
    return _EDFuse.apply(*rows, norm.contiguous(), gate, up, down, eps).view(state.shape)
