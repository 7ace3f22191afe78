"""What the drafter reads beside drafting, foreseen from what it read."""

import pytest

from vllm_edsd.policy.reads import PASSES, REQUESTS, Reads


def test_nothing_is_foreseen_before_anything_was_read():
    reads = Reads()
    reads.finished(100)
    reads.decoded(10)
    assert reads.seconds(1000) == reads.per_token() == 0.0


def test_reading_takes_as_long_as_it_did():
    reads = Reads()
    reads.took(1000, 2.0)
    reads.took(3000, 4.0)
    assert reads.seconds(500) == pytest.approx(500 * (2.0 * (1 - 1 / PASSES) + 4.0) / (1000 * (1 - 1 / PASSES) + 3000))


def test_a_machine_that_has_become_faster_is_believed():
    reads = Reads()
    reads.took(1000, 10.0)
    for _ in range(10 * PASSES):
        reads.took(1000, 1.0)
    assert reads.seconds(1000) == pytest.approx(1.0, rel=0.01)


def test_each_token_bears_its_share_of_the_prompts():
    reads = Reads()
    reads.took(1000, 1.0)
    for _ in range(20 * REQUESTS):
        reads.decoded(50)
        reads.finished(200)
    assert reads.per_token() == pytest.approx(200 / 50 * 1e-3, rel=0.03)


def test_where_no_prompt_counts_there_is_nothing_to_bear():
    reads = Reads()
    reads.took(1000, 1.0)
    reads.decoded(50)
    assert reads.per_token() == 0.0
