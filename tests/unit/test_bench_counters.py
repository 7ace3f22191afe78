"""The /metrics page, as vLLM writes it."""

import pytest

from vllm_edsd.engine.counters import SpecCounters, parse_counters

PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="target"} 1.0
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="target"} 6.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="target"} 4.0
# HELP vllm:spec_decode_num_drafts_created Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_created gauge
vllm:spec_decode_num_drafts_created{engine="0",model_name="target"} 1.7e+09
# HELP vllm:spec_decode_num_draft_tokens_total Number of draft tokens.
# TYPE vllm:spec_decode_num_draft_tokens_total counter
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="target"} 30.0
# HELP vllm:spec_decode_num_accepted_tokens_total Number of accepted tokens.
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="target"} 12.0
# HELP vllm:spec_decode_num_accepted_tokens_per_pos_total Accepted tokens per draft position.
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="target",position="0"} 8.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="target",position="1"} 3.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="target",position="2"} 1.0
"""


def test_counters_are_summed_over_engines_and_ordered_by_position():
    assert parse_counters(PAGE) == SpecCounters(10, 30, 12, (8, 3, 1))


def test_acceptance_length_counts_the_bonus_token():
    counters = parse_counters(PAGE)
    assert counters.acceptance_length == pytest.approx(2.2)
    assert counters.per_position == pytest.approx([0.8, 0.3, 0.1])


def test_a_server_that_does_not_speculate_has_length_one():
    counters = parse_counters('vllm:num_requests_running{engine="0"} 1.0\n')
    assert counters == SpecCounters()
    assert counters.acceptance_length == 1.0
    assert counters.per_position == []


def test_differences_and_sums_of_counters():
    later, earlier = SpecCounters(10, 50, 20, (9, 7, 4)), SpecCounters(4, 20, 6, (4, 2))
    assert later - earlier == SpecCounters(6, 30, 14, (5, 5, 4))
    assert (later - earlier) + earlier == later
    assert SpecCounters() + later == later
