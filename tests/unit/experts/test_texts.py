"""What is measured and trained on: whole texts, cut rows, and no text on both sides."""

import pytest
import torch

from vllm_edsd.errors import UserError
from vllm_edsd.experts.rows import pack, read_rows
from vllm_edsd.experts.texts import LEAST, LONGEST, Text, choose
from vllm_edsd.training.samples import Sample, write_shard


@pytest.fixture
def folder(make_samples, tmp_path):
    """40 samples in two shards, each of tokens of its own."""
    for shard in range(2):
        write_shard(tmp_path / f"samples-{shard:05d}.safetensors", make_samples(20, first=20 * shard), {})
    return tmp_path


def test_rows_are_the_samples_one_after_the_other(make_samples):
    samples = make_samples(3)  # 22, 23 and 24 tokens
    rows = pack(samples, 10)
    assert rows.shape == (6, 10) and rows.dtype == torch.int64
    assert rows.flatten().tolist() == [0] * 22 + [1] * 23 + [2] * 15


@pytest.mark.parametrize("seed", range(5))
def test_no_text_is_both_trained_on_and_held_out(seed, folder):
    training, held_out = read_rows([folder], 16, held_out=7, seed=seed)
    assert held_out.shape == (7, 16) and training.shape[1] == 16 and len(training) > 30
    assert not set(training.flatten().tolist()) & set(held_out.flatten().tolist())


def test_the_same_seed_reads_the_same_rows(folder):
    first, again, other = (read_rows([folder], 16, 7, seed) for seed in (1, 1, 2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("held_out", [60, 10_000])
def test_too_few_tokens_to_hold_out_are_refused(held_out, folder):
    with pytest.raises(UserError, match=rf"too few tokens for {held_out} held-out rows of 16; regenerate more, or hold out"):
        read_rows([folder], 16, held_out, 0)


def test_less_than_a_row_to_train_on_is_refused(folder):
    with pytest.raises(UserError, match="too few tokens"):
        read_rows([folder], 500, 1, 0)


def test_texts_are_distinct_and_repeatable(make_samples):
    samples = make_samples(9)
    chosen = choose(samples, 6, seed=1)
    names = [int(text.tokens[0, 0]) for text in chosen]
    assert len(set(names)) == 6
    assert names == [int(text.tokens[0, 0]) for text in choose(samples, 6, seed=1)]
    assert names != [int(text.tokens[0, 0]) for text in choose(samples, 6, seed=2)]


def test_texts_have_a_prompt_and_an_answer_and_are_not_too_long():
    def sample(prompt, answer):
        return Sample(torch.arange(prompt + answer).int(), prompt, 0.0)

    samples = [sample(LEAST, LEAST), sample(20, 400), sample(LEAST - 1, 30), sample(30, LEAST - 1), sample(LONGEST, 30)]
    chosen = choose(samples, 2, 0)
    assert sorted((text.answer, text.tokens.shape[1]) for text in chosen) == [(LEAST, 2 * LEAST), (20, LONGEST)]
    with pytest.raises(
        UserError, match="2 of the samples have 8 tokens of prompt and of answer within 256, and 3 are needed"
    ):
        choose(samples, 3, 0)


def test_the_parts_of_a_text():
    text = Text(torch.arange(10, 16)[None], 4)
    assert text.rows("prefill").tolist() == [[True] * 3 + [False] * 3]
    assert text.rows("all").tolist() == [[True] * 6]
    assert text.wanted.tolist() == [14, 15]
    assert text.tokens[0, text.scored].tolist() == [13, 14]
