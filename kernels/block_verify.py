"""Which drafted tokens are kept, and the token that follows them, so that the text stays distributed as the target's.

    standard   token k is kept with chance min(1, p/q); a rejected one is replaced from max(p - q, 0)
               (Leviathan et al. 2023, arXiv 2211.17192)
    block      the drafts are judged together (Sun et al. 2024, "Block verification", arXiv 2403.10444, algorithm 2):
               c_0 = 1, c_k = min(c_{k-1} p_k/q_k, 1);  S_k = sum_v max(c_k p(v) - q(v), 0) at position k + 1
               h_k = S_k / (S_k + 1 - c_k), at the last draft h_n = c_n;  keep up to the last k with u_k < h_k,
               then draw from max(c_k p - q, 0): never fewer tokens on average than standard

Both draw the same random numbers from a seed on every device.
"""

import torch

from vllm_edsd.kernels.dispatch import use_triton
from vllm_edsd.kernels.philox import philox

METHODS = ("standard", "block")
KEEP, RACE = 0, 1  # streams of a seed: chances of drafts, the drawing of a token
SMALL = 2.0**-6  # below it -log(1 - u) is a series, since 1 - u would round u away


def exponential(words: torch.Tensor) -> torch.Tensor:
    """Exp(1) variates, float32, of 32-bit words: -log(1 - u) with u = (word + 1/2) / 2^32."""
    u = (words.float() + 0.5) * 2.0**-32
    return torch.where(u < SMALL, u * (1 + u * (1 / 2 + u * (1 / 3 + u / 4))), -torch.log(1 - u))


def naive(
    drafts: torch.Tensor,
    cu_num_draft_tokens: torch.Tensor,
    draft_probs: torch.Tensor | None,
    target_probs: torch.Tensor,
    bonus: torch.Tensor,
    seeds: torch.Tensor,
    longest: int,
    method: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition; arguments as `block_verify` has them."""
    ends = cu_num_draft_tokens.long()
    counts = ends.diff(prepend=ends.new_zeros(1))
    begins = ends - counts
    requests = torch.arange(len(counts), device=counts.device)
    vocabulary = torch.arange(target_probs.shape[1], device=counts.device)

    def row(step: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draft token [R], p and q [R, V] at a position of each request; whatever it is beyond the end."""
        place = (begins + step).clamp(max=max(len(drafts) - 1, 0))
        token = drafts[place].long()
        q = (vocabulary == token[:, None]).float() if draft_probs is None else draft_probs[place]
        return token, target_probs[place], q

    kept = torch.zeros_like(counts)
    carry = torch.ones(len(counts), device=counts.device)
    kept_carry = carry.clone()
    out = torch.full((len(counts), longest + 1), -1, dtype=torch.int64, device=counts.device)
    for step in range(longest if len(drafts) else 0):
        token, p, q = row(step)
        p, q = p[requests, token], q[requests, token]
        ratio = torch.where(p > 0, p / q, 0.0)
        if method == "block":
            carry = (carry * ratio).clamp(max=1.0)
            _, p, q = row(step + 1)
            spare = (carry[:, None] * p - q).clamp(min=0.0).sum(-1)
            early = torch.where(spare > 0, spare / (spare + 1 - carry), 0.0)
            chance = torch.where(counts == step + 1, carry, early)
        else:
            chance = ratio
        u = (philox(seeds, torch.full_like(seeds, step), KEEP)[:, 0] >> 8).float() * 2.0**-24
        keep = (u < chance) & (step < counts)
        if method == "standard":
            keep &= kept == step
        kept = torch.where(keep, step + 1, kept)
        kept_carry = torch.where(keep, carry, kept_carry)
        out[:, step] = token
    last = bonus.long()
    if len(drafts):
        _, p, q = row(kept)
        weights = (kept_carry[:, None] * p - q).clamp(min=0.0)
        # Rounding can reject where nothing is left over; the target itself is then as good.
        weights = torch.where((weights > 0).any(-1, keepdim=True), weights, p)
        words = philox(seeds[:, None], vocabulary[: (len(vocabulary) + 3) // 4], RACE).flatten(1)[:, : len(vocabulary)]
        scores = torch.where(weights > 0, weights / exponential(words), -1.0)
        last = torch.where(kept < counts, scores.argmax(-1), last)
    columns = torch.arange(longest + 1, device=counts.device)
    out = torch.where(columns < kept[:, None], out, -1)
    return torch.where(columns == kept[:, None], last[:, None], out), kept.int()


def block_verify(
    drafts: torch.Tensor,
    cu_num_draft_tokens: torch.Tensor,
    draft_probs: torch.Tensor | None,
    target_probs: torch.Tensor,
    bonus: torch.Tensor,
    seeds: torch.Tensor,
    longest: int,
    method: str = "block",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Verifies T drafted tokens of R requests, laid end to end as vLLM's rejection sampler has them.

    drafts int64 [T]; cu_num_draft_tokens int32 [R], where each request's drafts end (a request may have none); draft_probs
    float32 [T, V], what each draft was drawn from, or None where it was a function of its prefix (greedy, n-gram);
    target_probs float32 [T, V], the target's distribution at each draft; bonus int64 [R], drawn from the target after the
    last draft; seeds int64 [R], new ones for every call; longest: at least every request's number of drafts, known on the
    host. A one-hot target (temperature 0) is verified exactly. Returns tokens int64 [R, longest + 1], kept drafts and one
    token more, then -1; and the number of kept drafts int32 [R]. Waits for no GPU result. Raises ValueError for other shapes
    or dtypes; values are not checked.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; give one of: {', '.join(METHODS)}")
    tokens, requests = len(drafts), len(cu_num_draft_tokens)
    wanted = {
        "drafts": (drafts, torch.int64, (tokens,)),
        "cu_num_draft_tokens": (cu_num_draft_tokens, torch.int32, (requests,)),
        "draft_probs": (draft_probs, torch.float32, (tokens, target_probs.shape[-1])),
        "target_probs": (target_probs, torch.float32, (tokens, target_probs.shape[-1])),
        "bonus": (bonus, torch.int64, (requests,)),
        "seeds": (seeds, torch.int64, (requests,)),
    }
    for name, (tensor, dtype, shape) in wanted.items():
        if tensor is not None and (tensor.dtype != dtype or tensor.shape != shape):
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}; give {dtype} {list(shape)}")
    if longest < 0:
        raise ValueError(f"longest is {longest}; give the largest number of drafts of a request, 0 or more")
    arguments = (drafts, cu_num_draft_tokens, draft_probs, target_probs, bonus, seeds)
    if not use_triton(*arguments):
        return naive(*arguments, longest, method)
    from vllm_edsd.kernels import block_verify_triton

    return block_verify_triton.launch(*(x if x is None else x.contiguous() for x in arguments), longest, method)
