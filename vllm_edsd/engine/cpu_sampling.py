"""Mends sampled speculation on vLLM's CPU backend without Triton (seen in 0.32.0).

Its `expand_kernel` fallback writes into an int64 copy that is thrown away, so the rejection sampler works with
uninitialised temperatures, top-k and top-p. Any request with a temperature above 0 is then sampled wrongly.
A request with top-k but no top-p ends the engine in a step without drafts, such as its first: the largest k of none is asked
for.
"""

import functools
from collections.abc import Callable

import torch


def expand(
    output: torch.Tensor,
    input_val: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,  # noqa: N803 - vLLM's name
) -> None:
    """Repeats each request's value for each of its tokens, with one value replaced, into `output` [num_tokens].

    input_val [batch_size]; cu_num_tokens [batch_size], cumulative.
    """
    values = torch.where(input_val == replace_from, torch.as_tensor(replace_to, dtype=input_val.dtype), input_val)
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    repeated = values.repeat_interleave(counts)
    output[: len(repeated)] = repeated.to(output.dtype)


def with_nothing(original: Callable) -> Callable:
    """`apply_top_k_only` that takes logits [0, V] as well."""

    @functools.wraps(original)
    def apply_top_k_only(logits: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return original(logits, k) if len(logits) else logits

    return apply_top_k_only


def install() -> None:
    """Takes the places of the fallback, which vLLM binds when its model runner is built, and of top-k; again, nothing."""
    from vllm.utils import cpu_triton_utils
    from vllm.v1.sample.ops import topk_topp_sampler

    cpu_triton_utils._expand_kernel_impl = expand
    if not hasattr(topk_topp_sampler.apply_top_k_only, "__wrapped__"):
        topk_topp_sampler.apply_top_k_only = with_nothing(topk_topp_sampler.apply_top_k_only)
