"""Prompt lookup (Saxena 2023): what followed the last tokens where the text had them before, the longest match first."""

from collections.abc import Sequence

import numpy as np

from vllm_edsd.drafters.proposer import Proposer

WINDOW = 8192  # last tokens of the text that are searched
LEAST, LONGEST = 2, 32  # tokens that must have stood earlier too, and how many are looked at
DOUBT = 1.5  # a match of n tokens is right about n times in n + DOUBT [ours: SmolLM2's answers to training prompts]


class Lookup(Proposer):
    """Keeps nothing. Where the copy reaches the text's end it goes on with itself, which follows a loop round and round."""

    def propose(self, tokens: np.ndarray, most: int) -> list[int]:
        text = tokens[-WINDOW:]
        length, place = match(text)
        followed = text[place:].tolist()
        return [followed[step % len(followed)] for step in range(most)] if length >= LEAST else []

    def chances(self, tokens: np.ndarray, drafted: Sequence[int]) -> np.ndarray:
        # Each token that proves right makes the match longer by one.
        lengths = match(tokens[-WINDOW:])[0] + np.arange(len(drafted))
        return lengths / (lengths + DOUBT)


def match(text: np.ndarray) -> tuple[int, int]:
    """How many of the last tokens of `text` [n] stood earlier too, LONGEST at most, and what index followed them last.

    (0, n) where not even the last one did; such an earlier stretch may overlap the last tokens.
    """
    ends, length = np.flatnonzero(text[:-1] == text[-1]), 0
    place = len(text)
    while len(ends) and length < LONGEST:
        length, place = length + 1, int(ends[-1]) + 1
        ends = ends[ends >= length]
        ends = ends[text[ends - length] == text[len(text) - 1 - length]]
    return length, place
