"""Block verification in vLLM's V1 model runner: its rejection sampler, with another rejection step inside.

Everything before the step (temperature, top-k, top-p, penalties, masks) and after it (log-probabilities) stays vLLM's.
"""

from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from vllm.v1.sample import rejection_sampler
from vllm.v1.sample.metadata import SamplingMetadata

from vllm_edsd.kernels.block_verify import block_verify


def seeds(counts: Sequence[int], generators: Mapping[int, torch.Generator], device: torch.device) -> torch.Tensor:
    """New seeds for the requests of one call, int64 [R]: from torch's generator, or the request's own where it has one.

    counts: draft tokens of each request. A request without drafts leaves its generator where it was.
    """
    found = torch.empty(len(counts), dtype=torch.int64, device=device).random_()
    for row, generator in generators.items():
        if counts[row]:
            found[row : row + 1].random_(generator=generator)
    return found


def reject_block(
    draft_token_ids: torch.Tensor,
    num_draft_tokens: list[int],
    max_spec_len: int,
    cu_num_draft_tokens: torch.Tensor,
    draft_probs: torch.Tensor | None,
    target_logits: torch.Tensor,
    bonus_token_ids: torch.Tensor,
    sampling_metadata: SamplingMetadata,
    **unused: Any,
) -> torch.Tensor:
    """Takes the place of vLLM's `rejection_sample`: int32 [R, max_spec_len + 1], kept drafts, one token more, then -1.

    draft_token_ids int32 or int64 [T], the drafts of R requests end to end; num_draft_tokens [R] and their cumulative sum
    int32 [R]; draft_probs float32 [T, V], or None for drafts that their prefixes determine; target_logits float32 [T, V],
    processed; bonus_token_ids [R, 1]. Greedy requests keep exactly the drafts that are the target's argmax.
    """
    if sampling_metadata.all_greedy:
        return rejection_sampler.rejection_sample(
            *(draft_token_ids, num_draft_tokens, max_spec_len, cu_num_draft_tokens, draft_probs, target_logits),
            *(bonus_token_ids, sampling_metadata),
            **unused,
        )
    target_probs = target_logits.softmax(dim=-1, dtype=torch.float32)
    if not sampling_metadata.all_random:
        assert sampling_metadata.temperature is not None
        counts = cu_num_draft_tokens.diff(prepend=cu_num_draft_tokens.new_zeros(1))
        greedy = sampling_metadata.temperature == rejection_sampler.GREEDY_TEMPERATURE
        greedy = greedy.repeat_interleave(counts, output_size=len(draft_token_ids))
        likeliest = torch.zeros_like(target_probs).scatter_(1, target_logits.argmax(-1, keepdim=True), 1.0)
        target_probs = torch.where(greedy[:, None], likeliest, target_probs)
    tokens, _ = block_verify(
        draft_token_ids.long(),
        cu_num_draft_tokens.int(),
        draft_probs,
        target_probs,
        bonus_token_ids[:, 0].long(),
        seeds(num_draft_tokens, sampling_metadata.generators, target_logits.device),
        max_spec_len,
        "block",
    )
    return tokens.int()


class BlockVerifier(rejection_sampler.RejectionSampler):
    """vLLM's RejectionSampler that judges each request's drafts as a whole; arguments and results are unchanged."""

    # vLLM calls the step as a global of its module: the same code over globals of ours leaves other samplers alone.
    forward = FunctionType(
        rejection_sampler.RejectionSampler.forward.__code__, {**vars(rejection_sampler), "rejection_sample": reject_block}
    )
