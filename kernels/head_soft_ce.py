"""The draft head and `soft_ce` together, block by block of rows: the logits of all rows never exist at once."""

from typing import Any

import torch

from vllm_edsd.kernels import soft_ce
from vllm_edsd.kernels.dispatch import use_triton

ROWS = {"cpu": 256, "cuda": 4096}  # rows of logits alive at once: a CPU's cache, a GPU's matrix units


def naive(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    loss: str = "kl",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition; arguments as `head_soft_ce` has them."""
    logits = hidden @ weight.to(hidden.dtype).T
    return soft_ce.naive(logits, target, mask, loss).sum() * scale, logits.argmax(-1)


def _spend(
    logits: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, loss: str, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The block's loss and its gradient in `logits`, which Triton overwrites."""
    if not use_triton(logits, target, mask):
        with torch.enable_grad():
            total = soft_ce.naive(logits.requires_grad_(), target, mask, loss).sum() * scale
        return total.detach(), torch.autograd.grad(total, logits)[0]
    from vllm_edsd.kernels import soft_ce_triton

    target = target.contiguous()
    losses, numbers = soft_ce_triton.forward(logits, target, mask, loss)
    upstream = torch.full((len(logits),), scale, device=logits.device)
    return losses.sum() * scale, soft_ce_triton.gradient(logits, target, mask, loss, numbers, upstream, logits)


class _HeadSoftCE(torch.autograd.Function):
    """Computes the gradients in the forward pass, where the logits are at hand anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        scale: float,
        mask: torch.Tensor | None,
        loss: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        total = torch.zeros((), device=hidden.device)
        guesses = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
        size = ROWS["cuda" if hidden.is_cuda else "cpu"]
        for begin in range(0, len(hidden), size):
            rows = slice(begin, begin + size)
            logits = hidden[rows] @ head.T
            guesses[rows] = logits.argmax(-1)
            part, grad = _spend(logits, target[rows], None if mask is None else mask[rows], loss, scale)
            total += part
            grad_hidden[rows] = grad @ head
            grad_weight += grad.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(guesses)
        return total, guesses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * upstream[0], grad_weight * upstream[0], None, None, None, None


def head_soft_ce(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    loss: str = "kl",
) -> tuple[torch.Tensor, torch.Tensor]:
    """scale * sum of `soft_ce(hidden @ weight.T, target, mask, loss)`, and the drafter's greedy guesses.

    hidden [N, H] (normed states, float32 or bfloat16), weight [V, H] (cast to hidden's dtype), target logits [N, V]; mask
    bool [N]. Returns a float32 scalar, differentiable once in hidden and weight, and int64 [N] draft ids. Raises ValueError
    for what `soft_ce` refuses. (EDTrain's loss of one unroll step, with scale = 0.8^j / BS.)
    """
    # An expanded, unallocated stand-in has the logits' shape and dtype.
    soft_ce.check(hidden.new_empty(1, 1).expand(len(hidden), len(weight)), target, mask, loss)
    return _HeadSoftCE.apply(hidden, weight, target, scale, mask, loss)
