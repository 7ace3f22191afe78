"""From logits to probabilities, and from probabilities to tokens."""

import torch


def probabilities(logits: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """What tokens are sampled from: float64, the shape of `logits` [..., V]; -inf has probability 0.

    Temperature 0 puts all on the first largest logit (greedy). `top_k` 0 keeps every token; `top_p` keeps the smallest set
    of most likely tokens that holds that share, after `top_k`. ValueError for values out of range.
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} or top_k {top_k} is negative, or top_p {top_p} not in (0, 1]")
    logits = logits.double()
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    if 0 < top_k < logits.shape[-1]:
        kept = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, logits.topk(top_k).indices, True)
        logits = logits.masked_fill(~kept, -torch.inf)
    found = (logits / temperature).softmax(-1)
    if top_p < 1:
        likely, order = found.sort(-1, descending=True)
        kept = torch.zeros_like(found, dtype=torch.bool).scatter_(-1, order, likely.cumsum(-1) - likely < top_p)
        found = found.masked_fill(~kept, 0)
        found = found / found.sum(-1, keepdim=True)
    return found


def race(weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scores whose order is a draw without replacement in proportion to `weights` [..., V]; 0 for weight 0.

    The largest score is a sample. Exponential race, the same as Gumbel-top-k (Kool et al. 2019) without the logarithms.
    """
    return weights / torch.empty_like(weights).exponential_(generator=generator)


def normalised(weights: torch.Tensor, fallback: torch.Tensor) -> torch.Tensor:
    """`weights` [..., V] over their sum; `fallback` where nothing is left (what follows then has probability 0)."""
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total, fallback)


def point(tokens: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """All probability on one token: `tokens` int64 [...] to [..., V] with the vocabulary and dtype of `like`."""
    return torch.nn.functional.one_hot(tokens, like.shape[-1]).to(like.dtype)
