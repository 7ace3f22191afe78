"""One verification budget for a batch, spent on the draft positions most likely to be reached (EVICT, arXiv 2605.00342).

A position's survival is the product of its request's chances up to it, so that it never grows along a draft and every
best-B set is a prefix of each draft. Lossless only if the chances are a function of the prefix (max probability, entropy),
never of the drafted token's own draw.
"""

import torch

from vllm_edsd.kernels.dispatch import use_triton

LARGEST = 16384  # requests x positions, each rounded up to a power of two, that one program holds


def naive(chances: torch.Tensor, lengths: torch.Tensor, tokens: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition; arguments as `budget` has them."""
    requests, positions = chances.shape
    survival = torch.zeros_like(chances)
    running = chances.new_ones(requests)
    for position in range(positions):  # one product after the other, so that rounding keeps it from growing
        running = torch.where(position < lengths, running * chances[:, position], 0.0)
        survival[:, position] = running
    flat = survival.T.flatten()
    order = flat.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    admitted = (rank < tokens) & (flat > 0)
    return survival, admitted.view(positions, requests).sum(0, dtype=torch.int32)


def budget(chances: torch.Tensor, lengths: torch.Tensor, tokens: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Survival of each draft position, and how many positions of each request are worth verifying.

    chances float32 [R, K] in [0, 1], the estimated chance that position k is accepted once k - 1 was; lengths int32 [R], how
    many positions each request drafted; tokens: the most positions to admit in all, a number or int32 [1] on the device.
    Returns survival float32 [R, K] (0 beyond the length) and counts int32 [R]: the first counts[r] positions of request r.
    Equal survivals go to the earlier position, then to the earlier request; a survival of 0 is never admitted. Waits for no
    GPU result, so it can be captured in a CUDA graph. Raises ValueError for other shapes, dtypes or a budget below 0.
    """
    if chances.ndim != 2 or chances.dtype != torch.float32:
        raise ValueError(f"chances are {chances.dtype} {list(chances.shape)}; give float32 [R, K]")
    if lengths.dtype != torch.int32 or lengths.shape != chances.shape[:1]:
        raise ValueError(f"lengths are {lengths.dtype} {list(lengths.shape)}; give int32 [{len(chances)}]")
    if isinstance(tokens, torch.Tensor):
        if tokens.dtype != torch.int32 or tokens.shape != (1,):
            raise ValueError(f"tokens is {tokens.dtype} {list(tokens.shape)}; give int32 [1] or a number")
    elif tokens < 0:
        raise ValueError(f"tokens is {tokens}; give a budget of 0 or more")
    device_tokens = tokens if isinstance(tokens, torch.Tensor) else None
    padded = 1 << (max(len(chances), 1) - 1).bit_length() << (max(chances.shape[1], 1) - 1).bit_length()
    if padded > LARGEST or not use_triton(chances, lengths, device_tokens):
        return naive(chances, lengths, tokens)
    from vllm_edsd.kernels import budget_triton

    return budget_triton.launch(chances.contiguous(), lengths, tokens)
