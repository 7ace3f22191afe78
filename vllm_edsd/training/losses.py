"""Losses of the draft head against the target, by name; no [rows, vocabulary] tensor is kept for the backward pass.

With p the target's distribution and q the drafter's, both on the draft vocabulary, and alpha = sum_v min(p, q):

    kl          -sum_v p ln q                    soft cross-entropy: forward KL but for the target's entropy (EDTrain)
    reverse_kl  sum_v q ln(q / p)
    tv          sum_v |p - q| / 2 = 1 - alpha
    hybrid      lambda sum_v p ln(p / q) + (1 - lambda) tv, lambda = exp(-3 alpha) taken as a constant (arXiv 2602.23881)
    ce          -ln q(the target's likeliest token)
    ce_text     -ln q(the token of the text), which is a sample of the target's

kl's gradient, tv and hybrid are those of `kernels/soft_ce.py`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch

ROWS = {"cpu": 256, "cuda": 8192}  # rows of logits alive at once: a CPU's cache, a GPU's matrix units
LEAST = 1e-30  # what ln p takes a probability of 0 for, which bfloat16 can hold

# (logits [r, V], wanted [r, V] or [r]) to the block's loss and its gradient in the logits
Rule = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Loss(NamedTuple):
    """`wanted`: what a row is compared with; the target's distribution [V], or the draft id of one token."""

    rule: Rule
    wanted: Literal["distribution", "argmax", "text"]


def _softmax(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log-sum-exp [r, 1] and softmax [r, V]."""
    largest = logits.amax(-1, keepdim=True)
    chances = (logits - largest).exp_()
    total = chances.sum(-1, keepdim=True)
    return largest + total.log(), chances.div_(total)


def _kl(logits: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    normaliser, q = _softmax(logits)
    return normaliser.sum() - (p * logits).sum(), q.sub_(p)


def _reverse_kl(logits: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    normaliser, q = _softmax(logits)
    ratio = logits - normaliser - p.clamp_min(LEAST).log_()
    rows = (q * ratio).sum(-1, keepdim=True)
    return rows.sum(), ratio.sub_(rows).mul_(q)


def _tv_rows(q: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """TV of each row [r, 1] and its gradient in the logits."""
    apart = q - p
    rows = apart.abs().sum(-1, keepdim=True) / 2
    slope = apart.sign_().div_(2)
    return rows, (slope - (q * slope).sum(-1, keepdim=True)).mul_(q)


def _tv(logits: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, grad = _tv_rows(_softmax(logits)[1], p)
    return rows.sum(), grad


def _hybrid(logits: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    normaliser, q = _softmax(logits)
    tv, grad = _tv_rows(q, p)
    weight = torch.exp(-3 * (1 - tv))
    kl = (p * (p.clamp_min(LEAST).log_() - logits + normaliser)).sum(-1, keepdim=True)
    return (weight * kl + (1 - weight) * tv).sum(), grad.mul_(1 - weight).add_(q.sub_(p).mul_(weight))


def _ce(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    normaliser, grad = _softmax(logits)
    rows = torch.arange(len(tokens), device=tokens.device)
    grad[rows, tokens] -= 1
    return normaliser.sum() - logits[rows, tokens].sum(), grad


LOSSES = {
    "kl": Loss(_kl, "distribution"),
    "reverse_kl": Loss(_reverse_kl, "distribution"),
    "tv": Loss(_tv, "distribution"),
    "hybrid": Loss(_hybrid, "distribution"),
    "ce": Loss(_ce, "argmax"),
    "ce_text": Loss(_ce, "text"),
}


def blocks(rows: torch.Tensor) -> Iterator[slice]:
    """The rows of a tensor, as many at a time as logits may be alive for."""
    size = ROWS[rows.device.type]
    return (slice(begin, begin + size) for begin in range(0, len(rows), size))


class _HeadLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass, block by block, where the logits are at hand anyway."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, wanted: torch.Tensor, scale: float, rule: Rule):
        head = weight.to(hidden.dtype)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        loss = hidden.new_zeros((), dtype=exact)
        guesses = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
        for rows in blocks(hidden):
            logits = (hidden[rows] @ head.T).to(exact)
            guesses[rows] = logits.argmax(-1)
            part = wanted[rows]
            value, grad = rule(logits, part.to(exact) if part.is_floating_point() else part)
            loss += value * scale
            grad = grad.mul_(scale).to(hidden.dtype)
            grad_hidden[rows] = grad @ head
            grad_weight += grad.T @ hidden[rows]
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(guesses)
        return loss, guesses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None, None, None


def head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, wanted: torch.Tensor, scale: float, loss: str = "kl"
) -> tuple[torch.Tensor, torch.Tensor]:
    """scale * the sum over rows of loss `loss`, one of LOSSES, and the drafter's greedy guesses, int64 [R] in draft ids.

    hidden [R, H] (normed states, float or bfloat16), weight [V, H] (cast to hidden's dtype), wanted: the target's
    distributions [R, V] (each row sums to 1) or, for a loss against tokens, draft ids int64 [R]. The loss is a float32
    scalar (float64 where hidden is), differentiable once in hidden and weight.
    """
    return _HeadLoss.apply(hidden, weight, wanted, scale, LOSSES[loss].rule)
