"""Mends sampled speculation on vLLM's CPU backend without Triton (seen in 0.32.0).

Its `expand_kernel` fallback writes into an int64 copy that is thrown away, so the rejection sampler works with
uninitialised temperatures, top-k and top-p. Any request with a temperature above 0 is then sampled wrongly.
"""

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


def install() -> None:
    """Takes the place of the fallback; vLLM binds it when its model runner is built."""
    from vllm.utils import cpu_triton_utils

    cpu_triton_utils._expand_kernel_impl = expand
