"""The draft vocabulary: the tokens that the target itself writes most (after VocabTrim, arXiv 2506.22694)."""

from collections.abc import Sequence

import torch

from vllm_edsd.errors import UserError
from vllm_edsd.training.samples import Sample


def token_counts(samples: Sequence[Sample], vocab_size: int) -> torch.Tensor:
    """How often the target wrote each token, int64 [vocab_size]."""
    return torch.bincount(torch.cat([sample.tokens[sample.answer :] for sample in samples]), minlength=vocab_size)


def most_frequent(counts: torch.Tensor, size: int) -> torch.Tensor:
    """The places of the `size` largest counts, ascending int64 [size]; ties go to the smaller place."""
    return counts.argsort(descending=True, stable=True)[:size].sort().values


def draft_vocabulary(counts: torch.Tensor, size: int) -> torch.Tensor:
    """The `size` most frequent tokens of counts [vocab_size], ascending int64 [size]; ties go to the smaller id.

    Raises UserError when `size` exceeds the target's vocabulary.
    """
    if size > len(counts):
        raise UserError(f"draft_vocab_size {size} exceeds the target's vocabulary of {len(counts)}; give at most that")
    return most_frequent(counts, size)
