from types import SimpleNamespace

import pytest

from vllm_edsd.engine.clock import StepClock, decodes
from vllm_edsd.policy.base import Step


@pytest.fixture
def clock():
    """A clock that is at `clock.time`."""
    made = StepClock(SimpleNamespace(count=0), lambda: made.time)
    made.time = 100.0
    return made


def test_a_step_lasts_until_the_next_begins(clock):
    assert clock.begin({"a": 1, "b": 4}, True) is None
    clock.time = 100.25
    clock.drafted(context=300, drafted=5, emitted=3)
    clock.time = 100.5
    assert clock.begin({"a": 6, "b": 6}, True) == Step(requests=2, context=300, tokens=5, drafted=5, emitted=3, seconds=0.5)
    clock.drafted(310, 0, 7)
    clock.time = 102.5
    assert clock.begin({"a": 1}, True) == Step(requests=2, context=310, tokens=12, drafted=0, emitted=7, seconds=2.0)


def test_steps_that_read_a_prompt_are_not_told(clock):
    clock.begin({"a": 20}, False)
    clock.drafted(20, 5, 1)
    clock.time = 101.0
    assert clock.begin({"a": 6}, True) is None
    clock.drafted(26, 5, 2)
    clock.time = 101.5
    # The step before a prompt is told: it lasted until the prompt was begun.
    assert clock.begin({"a": 6, "b": 30}, False) == Step(1, 26, 6, 5, 2, 0.5)
    clock.drafted(60, 5, 2)
    assert clock.begin({"a": 6, "b": 6}, True) is None


def test_a_step_after_which_nothing_was_left_to_do_is_not_told(clock):
    clock.begin({"a": 1, "b": 1}, True)
    clock.drafted(50, 5, 2)
    clock.time = 160.0
    assert clock.begin({"c": 1}, True) is None
    clock.drafted(10, 5, 1)
    clock.time = 160.5
    assert clock.begin({"c": 2}, True) == Step(1, 10, 1, 5, 1, 0.5)


def test_one_request_that_goes_on_is_enough(clock):
    clock.begin({"a": 1, "b": 1}, True)
    clock.drafted(50, 5, 2)
    clock.time = 101.0
    assert clock.begin({"b": 6, "c": 1}, True).seconds == 1.0


def test_a_step_in_which_the_process_was_stopped_is_not_told(clock):
    clock.begin({"a": 1}, True)
    clock.drafted(50, 0, 1)
    clock.stops.count += 1
    clock.time += 8.0
    assert clock.begin({"a": 1}, True) is None
    clock.drafted(51, 0, 1)
    clock.time += 0.125
    assert clock.begin({"a": 1}, True).seconds == 0.125


def test_a_step_without_drafting_phase_is_not_told(clock):
    clock.begin({"a": 1}, True)
    clock.drafted(50, 5, 1)
    assert clock.begin({"a": 6}, True) is not None
    assert clock.begin({"a": 1}, True) is None


def test_a_step_without_requests_is_no_decoding(clock):
    clock.begin({"a": 1}, True)
    clock.drafted(50, 5, 1)
    assert clock.begin({}, True) is None
    assert not clock.decoding
    clock.drafted(0, 0, 0)
    assert clock.begin({"a": 1}, True) is None
    assert clock.decoding


@pytest.mark.parametrize(
    ("new", "counts", "drafts", "expected"),
    [
        ([], {"a": 1, "b": 4}, {"b": [7, 8, 9]}, True),
        ([], {"a": 1, "b": 4}, {"b": [7, 8]}, False),  # the rest of a prompt
        ([], {"a": 1, "b": 4}, {}, False),
        (["b"], {"a": 1, "b": 1}, {}, False),  # a prompt of one token, or one whose beginning is cached
    ],
)
def test_a_step_decodes_where_every_request_has_one_token_and_its_drafts(new, counts, drafts, expected):
    output = SimpleNamespace(scheduled_new_reqs=new, num_scheduled_tokens=counts, scheduled_spec_decode_tokens=drafts)
    assert decodes(output) == expected
