"""Tri-grams: what is drafted from this text, what from earlier answers, and what is forgotten."""

import numpy as np
import pytest

from vllm_edsd.drafters.trigram import core
from vllm_edsd.drafters.trigram.core import Trigram


def text(*tokens):
    found = np.array(tokens, np.int32)
    found.flags.writeable = False
    return found


@pytest.mark.parametrize(
    ("tokens", "drafted"),
    [
        ((1, 2, 3, 4, 1, 2), [3, 4, 1, 2]),
        ((1, 2, 3, 1, 2, 4, 1, 2), [4, 1, 2, 4]),
        ((7, 7, 7), [7, 7, 7, 7]),
        ((1, 2, 3, 4, 2, 1), []),
        ((1, 2), []),
        ((1,), []),
    ],
    ids=["repeats", "the latest counts", "a run", "no such pair", "two tokens", "one token"],
)
def test_drafts_from_its_own_text(tokens, drafted):
    assert Trigram().propose(text(*tokens), 4) == drafted


def test_never_more_than_asked_for():
    assert Trigram().propose(text(7, 7, 7), 1) == [7]


def test_drafts_from_earlier_answers_once_they_agree():
    proposer = Trigram()
    proposer.observe(text(8, 1, 2, 3, 4), 3)
    assert proposer.propose(text(9, 1, 2), 4) == []
    proposer.observe(text(6, 1, 2, 3, 4), 2)
    assert proposer.propose(text(9, 1, 2), 4) == [3, 4]


def test_its_own_text_comes_first():
    proposer = Trigram()
    for _ in range(5):
        proposer.observe(text(1, 2, 3), 1)
    assert proposer.propose(text(1, 2, 5, 1, 2), 1) == [5]


def test_prompts_are_not_learnt_and_each_token_counts_once():
    proposer = Trigram()
    proposer.observe(text(1, 2, 3, 4, 5), 1)
    assert dict(proposer.votes) == {(3, 4): (5, 1)}
    proposer.observe(text(1), 1)
    proposer.observe(text(1, 2), 2)
    assert len(proposer.votes) == 1


def test_the_majority_is_drafted_and_a_change_of_habit_learnt():
    proposer = Trigram()
    for token, times in ((3, 100), (4, core.CERTAIN - 2)):
        for _ in range(times):
            proposer.observe(text(1, 2, token), 1)
    assert proposer.propose(text(9, 1, 2), 1) == [3]
    for _ in range(3):
        proposer.observe(text(1, 2, 4), 1)
    assert proposer.propose(text(9, 1, 2), 1) == [4]


def test_memory_is_bounded_and_the_least_used_goes(monkeypatch):
    monkeypatch.setattr(core, "CONTEXTS", 50)
    proposer = Trigram()
    random = np.random.default_rng(0)
    for _ in range(200):
        proposer.observe(text(1, 2, 3), 1)
        proposer.observe(random.integers(10, 1000, 40).astype(np.int32), 20)
        assert len(proposer.votes) <= 50
    assert proposer.propose(text(9, 1, 2), 1) == [3]


def test_only_the_end_of_a_long_text_is_searched(monkeypatch):
    monkeypatch.setattr(core, "WINDOW", 6)
    assert Trigram().propose(text(1, 2, 3, 4, 5, 6, 1, 2), 1) == []
    assert Trigram().propose(text(1, 2, 3, 5, 1, 2), 1) == [3]
