"""What a policy wants to know of a draft step, from one reading of its logits.

Replaces softmax, entropy and argmax, which together pass over [N, V] several times.
"""

from typing import NamedTuple

import torch

from vllm_edsd.kernels.dispatch import use_triton

DTYPES = (torch.float32, torch.bfloat16)


class DraftStats(NamedTuple):
    """All [N], of q = softmax(logits / temperature).

    token int64, the first argmax (a target id where d2t was given); max_probability float32; entropy float32, in nats;
    log_sum_exp float32, of logits / temperature. A row of only -inf has token 0 (mapped), probability 0, entropy +inf, -inf.
    """

    token: torch.Tensor
    max_probability: torch.Tensor
    entropy: torch.Tensor
    log_sum_exp: torch.Tensor


def naive(logits: torch.Tensor, temperature: torch.Tensor, d2t: torch.Tensor | None) -> DraftStats:
    """The definition; temperature float32 [N]."""
    token = logits.argmax(-1)
    scaled = logits.float() / temperature[:, None]
    largest = scaled.gather(-1, token[:, None])
    nothing = largest == float("-inf")
    shifted = scaled - largest.masked_fill(nothing, 0.0)
    weights = shifted.exp()
    total = weights.sum(-1)
    # 0 * -inf is not a number, and exp(-200) is 0 in float32.
    entropy = total.log() - (weights * shifted.clamp_(min=-200.0)).sum(-1) / total
    return DraftStats(
        token if d2t is None else token + d2t[token],
        (1 / total).masked_fill(nothing[:, 0], 0.0),
        entropy.masked_fill(nothing[:, 0], float("inf")),
        largest[:, 0] + total.log(),
    )


def draft_stats(
    logits: torch.Tensor, temperature: float | torch.Tensor = 1.0, d2t: torch.Tensor | None = None
) -> DraftStats:
    """Argmax, max probability, entropy and log-sum-exp of each row.

    logits [N, V], float32 or bfloat16, N may be 0; temperature above 0, one number or float32 [N] (a tensor's values are not
    checked: that would wait for the GPU); d2t int64 [V] maps draft ids to target ids as offsets: target id = id + d2t[id].
    Raises ValueError for other shapes, dtypes or numbers. (EDSD's policy signal; docs/kernels.md.)
    """
    if logits.ndim != 2 or logits.dtype not in DTYPES or logits.shape[1] == 0:
        raise ValueError(f"logits are {logits.dtype} {list(logits.shape)}; give float32 or bfloat16 [N, V] with V > 0")
    rows, vocabulary = logits.shape
    if d2t is not None and (d2t.dtype != torch.int64 or d2t.shape != (vocabulary,)):
        raise ValueError(f"d2t is {d2t.dtype} {list(d2t.shape)}; give int64 [{vocabulary}]")
    if not isinstance(temperature, torch.Tensor):
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; give a number above 0 (greedy needs the token only)")
        temperature = torch.full((1,), temperature, device=logits.device).expand(rows)
    elif temperature.dtype != torch.float32 or temperature.shape != (rows,):
        raise ValueError(f"temperature is {temperature.dtype} {list(temperature.shape)}; give float32 [{rows}] or a number")
    if not use_triton(logits, temperature, d2t):
        return naive(logits, temperature, d2t)
    from vllm_edsd.kernels import draft_stats_triton

    return DraftStats(*draft_stats_triton.launch(logits, temperature, d2t))
