"""Statistics of replies."""

import math

import pytest

from vllm_edsd.bench.arms import Arm
from vllm_edsd.bench.load import Reply
from vllm_edsd.bench.measure import Measurement, Sample, busy_seconds, first_token_seconds, gaps, quarters, summary
from vllm_edsd.engine.counters import SpecCounters
from vllm_edsd.prompts import Prompt

NO_DRAFTS = SpecCounters()


def reply(name, begun, ended, tokens, text="yes", arrivals=(), error=None, category="all"):
    chunks = tuple(arrivals) or ((ended, tokens),)
    return Reply(Prompt(id=name, turns=["?"], category=category), text, tokens, begun, ended, chunks, error)


def measured(arm, *replies, counters=NO_DRAFTS, concurrency=1, policy=None):
    samples = [Sample((one,), counters) for one in replies]
    return Measurement(Arm(arm, policy=policy), concurrency, samples)


def test_a_chunk_of_several_tokens_shares_its_gap():
    chunks = [(1.0, 1), (1.3, 4), (1.5, 5)]
    found = gaps(reply("a", 0.5, 1.5, 5, arrivals=chunks))
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.2])
    assert sum(found) == pytest.approx(0.5)
    assert first_token_seconds(reply("a", 0.5, 1.5, 5, arrivals=chunks)) == pytest.approx(0.5)


def test_busy_time_is_the_union_of_open_requests():
    assert busy_seconds(
        [reply("a", 0, 2, 1), reply("b", 1, 3, 1), reply("c", 5, 6, 1), reply("d", 5.2, 5.4, 1)]
    ) == pytest.approx(4)


def test_each_quarter_of_the_tokens_has_its_own_speed():
    one = reply("a", 1, 4, 6, arrivals=[(2.0, 2), (4.0, 6)])
    other = reply("b", 3, 8, 6, arrivals=[(5.0, 4), (8.0, 6)])
    # Of 12 tokens the third comes a quarter of the way from 2 to 4 seconds, the sixth at 4, the ninth at 4.75.
    assert quarters([one, other]) == pytest.approx([3 / 1.5, 3 / 1.5, 3 / 0.75, 3 / 3.25])
    assert quarters([]) == []
    assert (
        quarters([reply("a", 0, 1, 8, arrivals=[(1.0, 4)]), reply("b", 0, 1, 8, arrivals=[(1.0, 4)])])[2:] == [math.inf] * 2
    )


def test_a_quarter_in_which_an_arm_was_slower_shows():
    even = [reply("a", 0, 8, 8, arrivals=[(float(n), n) for n in range(1, 9)])]
    late = [reply("a", 0, 10, 8, arrivals=[*((float(n), n) for n in range(1, 7)), (8.0, 7), (10.0, 8)])]
    row = summary(measured("edsd", *late), measured("none", *even), 0)
    assert (row["speedup_quarters"], row["speedup_quarter_median"]) == ([1.0, 1.0, 1.0, 0.5], 1.0)


def test_summary_against_plain_decoding():
    plain = measured("none", reply("a", 0, 2, 20, "one"), reply("b", 2, 4, 20, "two"))
    fast = measured(
        "edsd", reply("a", 0, 1, 20, "one"), reply("b", 2, 3, 30, "TWO"), counters=SpecCounters(5, 25, 10, (4, 3, 2, 1, 0))
    )
    row = summary(fast, plain, temperature=0)
    assert row["output_tokens_per_s"] == pytest.approx(25)
    assert row["speedup"] == pytest.approx(2.5)
    assert row["identical_share"] == 0.5
    assert row["acceptance_length"] == 3.0
    assert row["per_position"] == [0.8, 0.6, 0.4, 0.2, 0]
    assert row["tokens_per_step"] == pytest.approx(50 / 30, abs=1e-4)
    assert row["categories"]["all"]["acceptance_length"] == 3.0


def test_a_slower_arm_shows_it():
    plain, slow = measured("none", reply("a", 0, 1, 10)), measured("ngram", reply("a", 0, 2, 10))
    assert summary(slow, plain, 0)["speedup"] == 0.5


def test_a_row_has_its_arm_and_its_policy():
    row = summary(measured("edsd", reply("a", 0, 1, 10), policy="evict:8"), None, 0)
    assert (row["arm"], row["policy"]) == ("edsd", "evict:8")
    row = summary(measured("none", reply("a", 0, 1, 10)), None, 0)
    assert (row["arm"], row["policy"]) == ("none", None)


def test_failed_requests_are_counted_and_not_identical():
    plain = measured("none", reply("a", 0, 1, 10), reply("b", 1, 2, 10))
    broken = measured("edsd", reply("a", 0, 1, 10), reply("b", 1, 2, 0, "", error="boom"))
    row = summary(broken, plain, 0)
    assert (row["requests"], row["failed_requests"], row["errors"]) == (2, 1, ["boom"])
    assert row["identical_share"] == 0.5
    assert row["output_tokens_per_s"] == pytest.approx(5)


def test_nothing_answered_gives_no_figure_and_no_error():
    row = summary(
        measured("edsd", reply("a", 0, 1, 0, error="boom")), measured("none", reply("a", 0, 1, 0, error="boom")), 0
    )
    assert row["output_tokens_per_s"] == 0
    assert row["speedup"] is None
    assert row["identical_share"] is None
    assert row["ttft_ms"] == row["itl_ms"] == {"p50": None, "p99": None}


def test_without_none_or_with_sampling_there_is_no_comparison():
    arm = measured("edsd", reply("a", 0, 1, 10))
    alone = summary(arm, None, 0)
    assert alone["speedup"] is alone["identical_share"] is None
    assert summary(arm, arm, temperature=0.7)["identical_share"] is None


def test_categories_only_where_each_sample_is_one_answer():
    both = (reply("a", 0, 1, 10, category="code"), reply("b", 0, 1, 10, category="story"))
    assert Measurement(Arm("none"), 2, [Sample(both, SpecCounters())]).categories() == {}
    assert set(measured("none", *both).categories()) == {"code", "story"}
