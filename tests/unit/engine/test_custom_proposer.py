"""Between vLLM's `custom_class` and a proposer."""

from types import SimpleNamespace

import numpy as np
import pytest

from vllm_edsd.drafters import registry
from vllm_edsd.drafters.proposer import Proposer
from vllm_edsd.engine.custom_proposer import CustomProposer

K, VOCABULARY = 3, 100


class Script(Proposer):
    """Says what it is told to, and remembers what it was told."""

    def __init__(self):
        self.drafts, self.told = [], []

    def propose(self, tokens, most):
        self.told.append(("propose", tokens.tolist(), most))
        return self.drafts.pop(0)

    def observe(self, tokens, new):
        self.told.append(("observe", tokens.tolist(), new))


@pytest.fixture
def adapter(monkeypatch):
    monkeypatch.setattr(registry, "load", {"script": Script}.__getitem__)
    config = SimpleNamespace(
        additional_config={"edsd": {"proposer": "script"}},
        speculative_config=SimpleNamespace(num_speculative_tokens=K),
        model_config=SimpleNamespace(get_vocab_size=lambda: VOCABULARY),
    )
    return CustomProposer(config)


def drafts(adapter, proposed, emitted):
    """Drafts for texts 0 1 2 ..., the r-th of r + 3 tokens, in a buffer with other tokens behind them."""
    adapter.free.proposer.drafts = list(proposed)
    buffer = np.tile(np.arange(20, dtype=np.int32), (len(emitted) + 2, 1))
    lengths = np.arange(len(emitted) + 2, dtype=np.int32) + 3
    before = buffer.copy()
    try:
        return adapter.propose(emitted, lengths, buffer, slot_mappings=None)
    finally:
        assert (buffer == before).all() and buffer.flags.writeable


def test_each_request_is_asked_with_its_own_text(adapter):
    assert drafts(adapter, [[5], [6, 7]], [[2], [1, 2, 3]]) == [[5], [6, 7]]
    assert adapter.free.proposer.told == [
        ("observe", [0, 1, 2], 1),
        ("propose", [0, 1, 2], K),
        ("observe", [0, 1, 2, 3], 3),
        ("propose", [0, 1, 2, 3], K),
    ]


def test_a_request_whose_prompt_is_being_read_is_left_alone(adapter):
    assert drafts(adapter, [[5]], [[], [2], []]) == [[], [5], []]
    assert [told[1] for told in adapter.free.proposer.told] == [[0, 1, 2, 3]] * 2
    assert drafts(adapter, [], []) == []


@pytest.mark.parametrize(
    ("proposed", "kept"),
    [
        ([], []),
        ([1, 2, 3, 4, 5], [1, 2, 3]),
        ((1, 2), [1, 2]),
        (np.array([1, 2], np.int64), [1, 2]),
        ([1, VOCABULARY, 2], [1]),
        ([0, VOCABULARY - 1, -1], [0, VOCABULARY - 1]),
    ],
    ids=["nothing", "too much", "tuple", "array", "past the vocabulary", "negative"],
)
def test_what_the_target_could_not_verify_is_cut(proposed, kept, adapter):
    (found,) = drafts(adapter, [proposed], [[2]])
    assert found == kept and all(type(token) is int for token in found)


def test_a_proposer_cannot_write_into_the_engines_buffer(adapter):
    def spoil(tokens, most):
        tokens[0] = 7

    adapter.free.proposer.propose = spoil
    with pytest.raises(ValueError, match="read-only"):
        drafts(adapter, [], [[2]])


def test_loading_is_nothing(adapter):
    assert adapter.load_model(object()) is None
