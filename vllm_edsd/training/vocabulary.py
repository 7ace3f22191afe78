"""The draft vocabulary: the tokens that the target itself writes most (after VocabTrim, arXiv 2506.22694)."""

from collections.abc import Sequence

import torch

from vllm_edsd.errors import UserError
from vllm_edsd.training.samples import Sample


def draft_vocabulary(samples: Sequence[Sample], vocab_size: int, size: int) -> tuple[torch.Tensor, float]:
    """The `size` most frequent answer tokens, ascending int64 [size], and the share of answer tokens they cover.

    Ties go to the smaller id. Raises UserError when `size` exceeds the target's vocabulary.
    """
    if size > vocab_size:
        raise UserError(f"draft_vocab_size {size} exceeds the target's vocabulary of {vocab_size}; give at most that")
    answers = torch.cat([sample.tokens[sample.answer :] for sample in samples])
    counts = torch.bincount(answers, minlength=vocab_size)
    ids = counts.argsort(descending=True, stable=True)[:size].sort().values
    return ids, float(counts[ids].sum() / counts.sum())
