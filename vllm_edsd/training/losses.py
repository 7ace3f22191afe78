"""Soft cross-entropy of the draft head against the target; no [rows, vocabulary] tensor is kept for the backward pass."""

from typing import Any

import torch

ROWS = 256  # rows of logits alive at once: 256 x 8192 float32 stays in a CPU's cache


class _HeadLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass, block by block, where the logits are at hand anyway."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, scale: float):
        head = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        loss = hidden.new_zeros((), dtype=torch.float32)
        guesses = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
        for begin in range(0, len(hidden), ROWS):
            rows = slice(begin, begin + ROWS)
            logits = (hidden[rows] @ head.T).float()
            guesses[rows] = logits.argmax(-1)
            wanted = target[rows].float()
            largest = logits.amax(-1, keepdim=True)
            chances = (logits - largest).exp_()
            total = chances.sum(-1, keepdim=True)
            loss += ((largest + total.log()).sum() - (wanted * logits).sum()) * scale
            grad = chances.div_(total).sub_(wanted).mul_(scale).to(hidden.dtype)
            grad_hidden[rows] = grad @ head
            grad_weight += grad.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(guesses)
        return loss, guesses

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None, None


def head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward KL up to the target's entropy: scale * sum over rows of -sum_v p_v log q_v.

    hidden [R, H] (normed states, float32 or bfloat16), weight float32 [V, H], target [R, V] (each row sums to 1).
    Returns the loss (float32 scalar) and the drafter's greedy guesses, int64 [R] in draft ids.
    """
    return _HeadLoss.apply(hidden, weight, target, scale)
