"""Steps timed on the device without waiting for it."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")
from vllm_edsd.engine.v2 import times as module
from vllm_edsd.engine.v2.times import StepTimes, Taken


class Event:
    """Happens when `reach` says so."""

    clock = 0.0
    reached = 0.0

    def __init__(self):
        self.at = Event.clock

    def query(self):
        return self.at <= Event.reached

    def elapsed_time(self, later):
        return later.at - self.at


@pytest.fixture
def times(monkeypatch):
    Event.clock = Event.reached = 0.0
    monkeypatch.setattr(module, "_now", Event)
    return StepTimes(SimpleNamespace(count=0))


def step(times, ids, emitted, decoding=True, tokens=4, tag="tag", drafts=True):
    """20 ms until the target is done, 5 more until the drafter is, 2 more until the next step."""
    times.begin(frozenset(ids), decoding)
    times.record_batch(SimpleNamespace(num_tokens=tokens, num_reqs=len(ids)), True)
    times.forward_start()
    Event.clock += 20
    if drafts:
        times.drafting(torch.tensor(emitted), tag)
        Event.clock += 5
        times.drafted()
    Event.clock += 2


def test_a_step_lasts_until_the_next_one_begins(times):
    step(times, "ab", [2, 3], tag="first")
    step(times, "ab", [1, 1], tag="second")
    Event.reached = Event.clock
    assert list(times.finished()) == [("first", Taken(2, 4, 5, 27.0, 5.0))]
    assert list(times.finished()) == []


def test_a_step_in_which_the_process_was_stopped_is_not_told(times):
    step(times, "a", [1], tag="first")
    step(times, "a", [1], tag="second")
    times.stops.count += 1
    step(times, "a", [1], tag="third")
    step(times, "a", [1], tag="fourth")
    Event.reached = Event.clock
    assert [tag for tag, _ in times.finished()] == ["first", "third"]


def test_nothing_is_told_before_it_has_happened(times):
    step(times, "a", [1])
    step(times, "a", [1])
    Event.reached = 26.0
    assert list(times.finished()) == []
    Event.reached = 27.0
    assert len(list(times.finished())) == 1


def test_steps_that_read_prompts_and_steps_before_a_pause_are_not_told(times):
    step(times, "a", [1], decoding=False, tag="prompt")
    step(times, "a", [2], tag="told")
    step(times, "a", [1], tag="before a pause")
    step(times, "b", [1])
    Event.reached = Event.clock
    assert [tag for tag, _ in times.finished()] == ["told"]


def test_a_step_that_failed_is_not_told(times):
    step(times, "a", [1], drafts=False)
    step(times, "a", [1], tag="told")
    step(times, "a", [1])
    Event.reached = Event.clock
    assert [tag for tag, _ in times.finished()] == ["told"]


def test_dummy_steps_leave_no_trace(times):
    times.record_batch(SimpleNamespace(num_tokens=8, num_reqs=8), True)
    times.forward_start()
    assert not times.flying and list(times.finished()) == []
