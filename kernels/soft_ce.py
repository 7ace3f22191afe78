"""Losses of a drafter's logits against the target's, row by row, on the draft vocabulary.

With p = softmax(target), q = softmax(draft), alpha = sum_v min(p, q) (the chance that a draft from q is accepted):

    kl      sum_v p ln(p / q)                      soft cross-entropy less the target's entropy: the same gradient (EDTrain)
    tv      sum_v |p - q| / 2 = 1 - alpha
    hybrid  lambda kl + (1 - lambda) tv, lambda = exp(-3 alpha) taken as a constant      (arXiv 2602.23881)
"""

from typing import Any

import torch

from vllm_edsd.kernels.dispatch import use_triton

LOSSES = ("kl", "tv", "hybrid")
DTYPES = (torch.float32, torch.bfloat16)


def _kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def _tv(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def naive(draft: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, loss: str) -> torch.Tensor:
    """The definition; arguments as `soft_ce` has them."""
    if mask is not None:
        # Replaced before the softmax: a gradient of 0 times NaN would still be NaN.
        draft = draft.masked_fill(~mask[:, None], 0.0)
        target = target.masked_fill(~mask[:, None], 0.0)
    log_q = draft.float().log_softmax(-1)
    log_p = target.detach().float().log_softmax(-1)
    if loss == "hybrid":
        tv = _tv(log_p, log_q)
        weight = torch.exp(-3 * (1 - tv.detach()))
        rows = weight * _kl(log_p, log_q) + (1 - weight) * tv
    else:
        rows = {"kl": _kl, "tv": _tv}[loss](log_p, log_q)
    return rows if mask is None else rows * mask


def check(draft: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, loss: str) -> None:
    """Raises ValueError for what `soft_ce` refuses."""
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; give one of: {', '.join(LOSSES)}")
    for name, logits in (("draft", draft), ("target", target)):
        if logits.ndim != 2 or logits.dtype not in DTYPES or logits.shape[1] == 0:
            raise ValueError(
                f"{name} logits are {logits.dtype} {list(logits.shape)}; give float32 or bfloat16 [N, V], V > 0"
            )
    if draft.shape != target.shape:
        raise ValueError(f"draft logits are {list(draft.shape)}, target logits {list(target.shape)}; give equal shapes")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != draft.shape[:1]):
        raise ValueError(f"mask is {mask.dtype} {list(mask.shape)}; give bool [{len(draft)}]")


class _SoftCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, draft: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, loss: str) -> torch.Tensor:
        from vllm_edsd.kernels import soft_ce_triton

        losses, numbers = soft_ce_triton.forward(draft, target, mask, loss)
        ctx.save_for_backward(draft, target, mask, numbers)
        ctx.loss = loss
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from vllm_edsd.kernels import soft_ce_triton

        draft, target, mask, numbers = ctx.saved_tensors
        out = torch.empty_like(draft)
        return (
            soft_ce_triton.gradient(draft, target, mask, ctx.loss, numbers, upstream[0].contiguous(), out),
            None,
            None,
            None,
        )


def soft_ce(draft: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None, loss: str = "kl") -> torch.Tensor:
    """Loss of each row, float32 [N], in nats (tv: a probability); differentiable once, in `draft` only.

    draft and target are logits [N, V] over the same draft ids, float32 or bfloat16, N may be 0; mask bool [N], False for
    rows that do not count (EDTrain's entropy mask): their loss and gradient are 0, whatever they hold. -inf logits are
    probability 0; a row of nothing else must be masked. The Triton path keeps four numbers a row for the backward pass, and
    no [N, V] tensor beside its arguments. Raises ValueError for other shapes, dtypes or losses.
    """
    check(draft, target, mask, loss)
    if not use_triton(draft, target, mask):
        return naive(draft, target, mask, loss)
    return _SoftCE.apply(draft.contiguous(), target.contiguous(), mask, loss)
