"""Conversations to measure on: the target's own text, with the prompt's tokens known from the answer's."""

import dataclasses
import random
from collections.abc import Sequence

import torch

from vllm_edsd.errors import UserError
from vllm_edsd.experts.plan import Mode
from vllm_edsd.training.samples import Sample

LONGEST = 256
LEAST = 8  # tokens of prompt and of answer


@dataclasses.dataclass(frozen=True)
class Text:
    """`tokens` int64 [1, T]; `answer` is the place of the first token that the target wrote."""

    tokens: torch.Tensor
    answer: int

    def rows(self, mode: Mode) -> torch.Tensor:
        """bool [1, T]: the tokens that a plan for `mode` is used on.

        For "prefill" the prompt's but for its last, which predicts the answer's first token and is computed like the answer.
        """
        length = self.tokens.shape[1]
        return torch.arange(length)[None] < (self.answer - 1 if mode == "prefill" else length)

    @property
    def scored(self) -> slice:
        """The positions that predict the answer's tokens."""
        return slice(self.answer - 1, self.tokens.shape[1] - 1)

    @property
    def wanted(self) -> torch.Tensor:
        """int64: what those positions ought to predict."""
        return self.tokens[0, self.answer :]


def choose(samples: Sequence[Sample], count: int, seed: int) -> list[Text]:
    """`count` samples in a seeded order, cut to LONGEST tokens. Raises UserError where there are too few."""
    usable = [
        sample for sample in samples if sample.answer >= LEAST and min(len(sample.tokens), LONGEST) - sample.answer >= LEAST
    ]
    if len(usable) < count:
        raise UserError(
            f"{len(usable)} of the samples have {LEAST} tokens of prompt and of answer within {LONGEST}, and {count} are "
            "needed; regenerate more, or ask for fewer"
        )
    chosen = random.Random(seed).sample(usable, count)
    return [Text(sample.tokens[:LONGEST].long()[None], sample.answer) for sample in chosen]
