"""What is done to a model runner V2 under policy evict; the runner is a stand-in, the rest is real."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")
from vllm.v1.worker.gpu.spec_decode.adaptive_verification import AdaptiveVerificationManager

from vllm_edsd.engine.v2 import adaptation as module
from vllm_edsd.engine.v2 import times
from vllm_edsd.engine.v2.adaptation import LEARN, REFIT, Adaptation
from vllm_edsd.observability.tally import Tally

K, ROWS = 4, 3
CURVE = [(1, 10.0), (8, 20.0)]


class Group:
    """One rank: what it broadcasts is what `told` says, or its own."""

    told = None

    def broadcast_object(self, value, src=0):
        return value if self.told is None else self.told


class Event:
    """On a clock that each step moves on by 7, and each draft by 2."""

    clock = 0.0

    def __init__(self):
        self.at = Event.clock

    def query(self):
        return True

    def elapsed_time(self, later):
        return later.at - self.at


class Speculator:
    """Drafts 5s, unless it is asked for none."""

    max_num_reqs, num_speculative_steps, device = ROWS, K, torch.device("cpu")

    def __init__(self):
        self.asked = []
        self.draft_token_confidence_probs = torch.ones(ROWS, K)

    def propose(self, input_batch, *args, num_speculative_tokens=K, **kwargs):
        self.asked.append(num_speculative_tokens)
        Event.clock += 2
        return torch.full((ROWS, K), 5 if num_speculative_tokens else -1)


@pytest.fixture
def group(monkeypatch):
    group = Group()
    Event.clock = 0.0
    monkeypatch.setattr(module, "get_tp_group", lambda: group)
    monkeypatch.setattr(times, "_now", Event)
    monkeypatch.setattr("vllm.v1.worker.gpu.spec_decode.adaptive_verification.get_tp_group", lambda: group)
    return group


@pytest.fixture
def make(group):
    def make(method="greedy", replicas=1):
        manager = object.__new__(AdaptiveVerificationManager)
        manager.req_states = SimpleNamespace(max_num_reqs=8, max_num_batched_tokens=64, num_speculative_steps=K)
        manager._cudagraph_limit, manager.cost_tables = 8, None
        runner = SimpleNamespace(
            adaptive_verification=manager, speculator=Speculator(), prepare_dummy_attn=lambda batch: "prepared"
        )
        config = SimpleNamespace(
            speculative_config=SimpleNamespace(draft_sample_method=method),
            parallel_config=SimpleNamespace(data_parallel_size=replicas),
        )
        found = Adaptation(runner, config, Tally(("model", "0")))
        found.verification.set_cost_curves(CURVE, CURVE)
        return found, runner

    return make


def scheduled(*requests, drafts=K, new=()):
    return SimpleNamespace(
        num_scheduled_tokens=dict.fromkeys(requests, 1 + drafts),
        scheduled_spec_decode_tokens={request: [-1] * drafts for request in requests},
        scheduled_new_reqs=new,
    )


def step(adaptation, runner, output=None):
    """One step of request "a"; the tokens drafted."""
    adaptation.begin(output or scheduled("a"))
    runner.step_timing.record_batch(SimpleNamespace(num_tokens=1 + K, num_reqs=1), True)
    runner.step_timing.forward_start()
    Event.clock += 7
    return runner.speculator.propose(None, None, None, None, None, torch.tensor([2]))


class Always:
    """In place of a contest."""

    def __init__(self, drafts):
        self.drafts, self.learnt = drafts, []

    def of(self, requests):
        return self

    def next(self):
        return self.drafts

    def learn(self, drafts, step):
        self.learnt.append((drafts, step.emitted))


def test_a_step_that_rests_reads_and_drafts_nothing(make):
    adaptation, runner = make()
    adaptation.contests = Always(False)
    tokens = step(adaptation, runner)
    assert runner.speculator.asked == [0] and adaptation.verification.resting
    assert (tokens == 0).all() and (runner.speculator.draft_token_confidence_probs == 0).all()
    adaptation.contests = Always(True)
    assert (step(adaptation, runner) == 5).all() and not adaptation.verification.resting


@pytest.mark.parametrize(("method", "replicas"), [("probabilistic", 1), ("greedy", 2)])
def test_where_drafts_are_sampled_or_ranks_draft_together_nothing_rests(make, method, replicas):
    adaptation, runner = make(method, replicas)
    adaptation.contests = Always(False)
    step(adaptation, runner)
    assert runner.speculator.asked == [K] and not adaptation.verification.resting


def test_a_step_that_reads_a_prompt_changes_nothing(make):
    adaptation, runner = make()
    adaptation.contests = Always(False)
    step(adaptation, runner, scheduled("a", new=["a"]))
    step(adaptation, runner, scheduled("a", new=["b"]))
    assert runner.speculator.asked == [K, K]


def test_while_costs_are_unknown_and_in_dummy_steps_nothing_is_done(make):
    adaptation, runner = make()
    adaptation.contests = Always(False)
    adaptation.verification.cost_tables = None
    step(adaptation, runner)
    assert runner.speculator.asked == [K] and adaptation.steps == 0


def test_ranks_learn_what_the_first_one_measured(make, group):
    adaptation, runner = make()
    adaptation.contests = Always(True)
    group.told = [((1, False, False), times.Taken(1, 1, 9, 20.0, 1.0))]
    for _ in range(LEARN):
        step(adaptation, runner)
    assert adaptation.contests.learnt == [(False, 9)]


def test_what_steps_take_moves_the_costs(make):
    adaptation, runner = make()
    adaptation.contests = Always(True)
    before = adaptation.verification.cost_tables
    for _ in range(REFIT + 1):
        step(adaptation, runner)
    drafting, verifying = adaptation.verification.cost_tables
    assert {drafts for drafts, _ in adaptation.contests.learnt} == {True}
    assert verifying[5] == pytest.approx(7.0) and drafting[1] == pytest.approx(2.0)
    assert (verifying[1:9] < before[1][1:9]).all()


def test_a_step_after_a_change_counts_for_neither_way(make):
    adaptation, runner = make()
    adaptation.contests = always = Always(True)
    for number in range(2 * LEARN):
        always.drafts = number % 2 == 0
        step(adaptation, runner)
    assert always.learnt == [(True, 2)]  # the first step alone did as the one before it


def test_dummy_steps_are_priced_with_tokens_that_count(make):
    adaptation, runner = make()
    batch = SimpleNamespace(is_padding=torch.ones(4, dtype=torch.bool))
    assert runner.prepare_dummy_attn(batch) == "prepared" and batch.is_padding.all()
    adaptation.verification.pricing = True
    runner.prepare_dummy_attn(batch)
    assert not batch.is_padding.any()
