"""Prompt lookup: the longest match first, the latest of equals, and copies that run into themselves."""

import numpy as np
import pytest

from vllm_edsd.drafters.lookup.core import LONGEST, Lookup, match


def text(*tokens):
    found = np.array(tokens, np.int32)
    found.flags.writeable = False
    return found


def naive(tokens):
    """As `match`, by trying every length and place."""
    count = len(tokens)
    for length in range(min(count - 1, LONGEST), 0, -1):
        for place in range(count - 1, length - 1, -1):
            if tokens[place - length : place] == tokens[count - length :]:
                return length, place
    return 0, count


def test_matches_as_the_definition_says():
    random = np.random.default_rng(0)
    for _ in range(500):
        tokens = random.integers(0, random.integers(1, 6), random.integers(1, 90))
        assert match(tokens) == naive(tokens.tolist())


@pytest.mark.parametrize(
    ("tokens", "drafted"),
    [
        ((1, 2, 3, 4, 1, 2), [3, 4, 1, 2]),
        ((1, 2, 3, 1, 2, 4, 1, 2), [4, 1, 2, 4]),
        ((9, 1, 2, 3, 5, 1, 2, 4, 9, 1, 2), [3, 5, 1, 2]),
        ((7, 7, 7), [7, 7, 7, 7]),
        ((1, 2, 3, 2), []),
        ((1,), []),
    ],
    ids=["repeats", "the latest of equals", "the longest before the latest", "a run", "one token is too few", "one token"],
)
def test_drafts_what_followed(tokens, drafted):
    assert Lookup().propose(text(*tokens), 4) == drafted


def test_is_the_surer_the_longer_the_match():
    short, long = (Lookup().chances(text(*[1, 2, 3, 4, 5][-size:], 8, *[1, 2, 3, 4, 5][-size:]), [8, 1]) for size in (2, 5))
    assert 0 < short[0] < short[1] < long[0] < long[1] < 1
