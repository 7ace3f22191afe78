"""Refuses data that another target or tokenizer made: what it wrote greedily must be what this target would write."""

from collections.abc import Sequence
from pathlib import Path

from vllm_edsd.errors import UserError
from vllm_edsd.training.samples import Sample

LEAST_AGREEMENT = 0.7  # its own text in other arithmetic: above 0.95; another target's: below 0.5


def check_vocabulary(samples: Sequence[Sample], vocab_size: int, data: Path, target: Path) -> None:
    """Raises UserError for a token that the target does not have."""
    largest = max(int(sample.tokens.max()) for sample in samples)
    if largest >= vocab_size:
        raise UserError(
            f"{data} has token {largest}, but {target} has a vocabulary of {vocab_size}: the data is of another tokenizer; "
            f"regenerate it with: vllm-edsd regen {target}"
        )


def check_agreement(agreed: int, greedy: int, data: Path, target: Path) -> None:
    """Raises UserError when too few of the `greedy` answer tokens are what the target says there; 0 of 0 passes."""
    if agreed < LEAST_AGREEMENT * greedy:
        raise UserError(
            f"{target} would have written only {agreed / greedy:.0%} of the greedy answers in {data}: they are another "
            f"target's; regenerate them with: vllm-edsd regen {target}"
        )
