"""`block_verify` in Triton: one program a draft for its chance, then one a request that keeps, and draws by a race.

The race: the id with the largest weight / Exp(1) wins with a chance proportional to its weight; no sum, no second pass.
"""

import torch
import triton
import triton.language as tl

from vllm_edsd.kernels import block_verify

TILE = 4096  # ids a program looks at together
_KEEP = tl.constexpr(block_verify.KEEP)
_RACE = tl.constexpr(block_verify.RACE)
_SMALL = tl.constexpr(block_verify.SMALL)


@triton.jit
def _span(cu, request):
    """Where the request's drafts begin, and how many they are."""
    begin = tl.load(cu + request - 1, mask=request > 0, other=0).to(tl.int64)
    return begin, (tl.load(cu + request).to(tl.int64) - begin).to(tl.int32)


@triton.jit
def _chances_at(target, draft, place, v, ids, token):
    inside = ids < v
    p = tl.load(target + place * v + ids, mask=inside, other=0.0)
    q = tl.where(ids == token, 1.0, 0.0) if draft is None else tl.load(draft + place * v + ids, mask=inside, other=0.0)
    return p, q


@triton.jit
def _judge(drafts, cu, draft, target, chances, carries, v, longest, block: tl.constexpr, wide: tl.constexpr):
    request = tl.program_id(0)
    step = tl.program_id(1)
    begin, count = _span(cu, request)
    if step >= count:
        return
    carry = tl.full((), 1.0, tl.float32)
    for earlier in range(0 if block else step, step + 1):
        token = tl.load(drafts + begin + earlier)
        p, q = _chances_at(target, draft, begin + earlier, v, token, token)
        carry = carry * tl.where(p > 0, tl.div_rn(p, q), 0.0)
        if block:
            carry = tl.minimum(carry, 1.0)
    chance = carry
    if block and step + 1 < count:
        following = tl.load(drafts + begin + step + 1)
        spare = tl.zeros((wide,), tl.float32)
        for start in range(0, v, wide):
            p, q = _chances_at(target, draft, begin + step + 1, v, start + tl.arange(0, wide), following)
            spare += tl.maximum(carry * p - q, 0.0)
        left = tl.sum(spare, 0)
        chance = tl.where(left > 0, left / (left + 1 - carry), 0.0)
    tl.store(chances + request * longest + step, chance)
    tl.store(carries + request * longest + step, carry)


@triton.jit
def _exponential(word):
    u = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    series = u * (1 + u * (1 / 2 + u * (1 / 3 + u / 4)))
    return tl.where(u < _SMALL, series, -tl.log(1 - u))


@triton.jit
def _emit(
    drafts,
    cu,
    draft,
    target,
    bonus,
    seeds,
    chances,
    carries,
    out,
    kept_out,
    v,
    longest,
    block: tl.constexpr,
    wide: tl.constexpr,
):
    request = tl.program_id(0)
    begin, count = _span(cu, request)
    seed = tl.load(seeds + request)
    out += request.to(tl.int64) * (longest + 1)
    kept = tl.full((), 0, tl.int32)
    for step in range(count):
        word, _, _, _ = tl.philox(seed, step, _KEEP, 0, 0)
        keep = (word >> 8).to(tl.float32) * 5.9604644775390625e-08 < tl.load(chances + request * longest + step)  # 2^-24
        if not block:
            keep = keep & (kept == step)
        kept = tl.where(keep, step + 1, kept)
    carry = tl.full((), 1.0, tl.float32)
    if block:
        carry = tl.load(carries + request * longest + kept - 1, mask=kept > 0, other=1.0)
    place = begin + kept
    stop = tl.where(kept < count, v, 0)
    rejected = tl.load(drafts + place, mask=kept < count, other=-1)
    spare_score = tl.full((wide,), -1.0, tl.float32)
    spare_id = tl.zeros((wide,), tl.int32)
    score = tl.full((wide,), -1.0, tl.float32)
    best_id = tl.zeros((wide,), tl.int32)
    for start in range(0, stop, 4 * wide):
        block_of_four = start // 4 + tl.arange(0, wide)
        words = tl.philox(seed, block_of_four, _RACE, 0, 0)
        for lane in tl.static_range(4):
            ids = 4 * block_of_four + lane
            p, q = _chances_at(target, draft, place, v, ids, rejected)
            variate = _exponential(words[lane])
            spare = carry * p - q
            new = tl.where(spare > 0, spare / variate, -1.0)
            spare_id = tl.where(new > spare_score, ids, spare_id)
            spare_score = tl.maximum(new, spare_score)
            new = tl.where(p > 0, p / variate, -1.0)
            best_id = tl.where(new > score, ids, best_id)
            score = tl.maximum(new, score)
    some = tl.max(spare_score, 0) >= 0  # rounding can reject where nothing is left over; the target itself is then as good
    score = tl.where(some, spare_score, score)
    best_id = tl.where(some, spare_id, best_id)
    winner = tl.sum(tl.where(tl.arange(0, wide) == tl.argmax(score, 0), best_id, 0), 0).to(tl.int64)
    last = tl.where(kept < count, winner, tl.load(bonus + request))
    for step in range(longest + 1):
        token = tl.load(drafts + begin + step, mask=step < kept, other=-1)
        tl.store(out + step, tl.where(step == kept, last, token))
    tl.store(kept_out + request, kept)


def launch(
    drafts: torch.Tensor,
    cu_num_draft_tokens: torch.Tensor,
    draft_probs: torch.Tensor | None,
    target_probs: torch.Tensor,
    bonus: torch.Tensor,
    seeds: torch.Tensor,
    longest: int,
    method: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments as `block_verify.naive` has them, contiguous."""
    requests, vocabulary = len(seeds), target_probs.shape[1]
    out = torch.empty(requests, longest + 1, dtype=torch.int64, device=drafts.device)
    kept = torch.empty(requests, dtype=torch.int32, device=drafts.device)
    if requests:
        chances, carries = torch.empty(2, requests, longest, device=drafts.device)
        block, wide = method == "block", min(TILE, max(triton.next_power_of_2(vocabulary), 4))
        sides = (drafts, cu_num_draft_tokens, draft_probs, target_probs)
        if longest:
            _judge[(requests, longest)](*sides, chances, carries, vocabulary, longest, block=block, wide=wide)
        _emit[(requests,)](
            *sides, bonus, seeds, chances, carries, out, kept, vocabulary, longest, block=block, wide=wide // 4, num_warps=8
        )
    return out, kept
