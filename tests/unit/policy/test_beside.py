"""Drafts without a model beside a policy: taken where they are faster, and kept apart from what the policy learns."""

import numpy as np
import pytest

from vllm_edsd.policy import registry
from vllm_edsd.policy.base import DraftPolicy, Step, Verdict
from vllm_edsd.policy.beside import Beside
from vllm_edsd.policy.cost import CostModel, Load

TRUTH = (1.0, 0.02, 0.03, 0.1, 0.01, 0.0)  # seconds of a step, as `CostModel` has it


class Steady(DraftPolicy):
    """Drafts three tokens at every step; remembers what it was told."""

    def __init__(self, max_tokens=8):
        super().__init__(max_tokens)
        self.told = []

    def start(self, requests):
        return True

    def proceed(self, drafting):
        return drafting.drafted < 3

    def cut(self, drafting):
        return np.full(len(drafting.requests), drafting.drafted)

    def observe(self, verdicts):
        self.told.append(verdicts)

    def timed(self, step):
        self.told.append(step)


class World:
    """Drives a policy as the engine does; the drafter's drafts give 0.6 tokens a step."""

    def __init__(self, policy, requests=("a",)):
        self.policy, self.requests = policy, list(requests)
        self.last, self.counts = None, None
        self.steps = []

    def step(self, chances, hit):
        """One step in which each request is offered a draft of these chances, `hit` tokens of which are right."""
        count, verified, emitted = len(self.requests), 0, float(len(self.requests))
        if self.last == "beside":
            verified, emitted = sum(self.counts), emitted + sum(min(each, self.hit) for each in self.counts)
            self.policy.observe(
                [
                    Verdict(name, each, min(each, self.hit))
                    for name, each in zip(self.requests, self.counts, strict=True)
                    if each
                ]
            )
        elif self.last == "model":
            verified, emitted = 3 * count, emitted + 0.6 * count
            self.policy.observe([Verdict(name, 3, 0) for name in self.requests])
        found = self.policy.beside(self.requests, [chances] * count, 100)
        drafted = 0 if found is not None else 3
        self.last, self.counts, self.hit = ("model", None, hit) if found is None else ("beside", found.tolist(), hit)
        row = np.array([1.0, count, verified, drafted, drafted * count, 0.1])
        self.policy.timed(Step(count, 100, count + verified, drafted, emitted, float(row @ TRUTH)))
        self.steps.append(self.last)
        return found


@pytest.fixture
def world():
    return World(Beside(Steady(), CostModel(np.array(TRUTH))))


def test_waits_until_it_knows_what_the_policy_gives(world):
    for _ in range(9):
        assert world.step([0.95] * 8, 8) is None
    for _ in range(3):
        found = world.step([0.95] * 8, 8)
    assert found.tolist() == [8]


def test_takes_what_pays_and_no_more(world):
    for _ in range(12):
        world.step([], 0)
    assert world.step([0.9, 0.9, 0.9, 0.001, 0.001], 3).tolist() == [3]
    assert world.step([0.02] * 8, 0) is None
    assert world.step([], 0) is None


def test_leaves_plain_decoding_to_the_guard():
    """Even where a step without any draft would be faster than the policy is."""
    dear = World(Beside(Steady(), CostModel(np.array(TRUTH) * [1, 1, 20, 10, 1, 1])))
    for _ in range(12):
        dear.policy.timed(Step(1, 100, 4, 3, 1.6, 6.0))
    assert dear.policy.beside(["a"], [[0.01] * 4], 100) is None


def test_learns_that_it_was_wrong(world):
    for _ in range(12):
        world.step([], 0)
    taken = [world.step([0.6] * 4, 0) is not None for _ in range(200)]
    assert taken[0] and not any(taken[100:])


def test_the_policy_hears_nothing_of_other_steps(world):
    for _ in range(12):
        world.step([], 0)
    before = len(world.policy.policy.told)
    for _ in range(5):
        assert world.step([0.95] * 8, 8) is not None
    # The verdict on its own last draft, and nothing else.
    assert [type(told) for told in world.policy.policy.told[before:]] == [list]
    before = len(world.policy.policy.told)
    world.step([], 0)  # verifies a draft of the other kind
    assert world.policy.policy.told[before:] == []
    world.step([], 0)
    assert [type(told) for told in world.policy.policy.told[before:]] == [list, Step]


def test_one_request_of_a_batch_may_have_no_draft(world):
    world.requests = ["a", "b"]
    for _ in range(12):
        world.step([], 0)
    found = world.policy.beside(["a", "b"], [[0.95] * 8, []], 200)
    assert found.tolist() == [8, 0]


def test_state_is_told_apart_and_forgotten(world):
    for _ in range(12):
        world.step([], 0)
    for _ in range(4):
        world.step([0.95] * 8, 8)
    state = world.policy.state()
    assert state["beside_judged"] == state["beside_accepted"] == 24 and state["tracked_requests"] == 1
    world.policy.forget(["a"])
    assert world.policy.state()["tracked_requests"] == 0


def test_stands_around_the_guard():
    policy = registry.make("evict", 8, [*TRUTH], beside=True)
    assert isinstance(policy, Beside)
    assert registry.make("evict", 8).beside(["a"], [[0.99]], 10) is None


def test_shares_what_steps_cost_with_evict():
    policy = registry.make("evict", 8, [*TRUTH], beside=True)
    cost = policy.policy.policy.cost
    for _ in range(40):  # none of them is a step of evict's own
        policy.offered = object()
        policy.timed(Step(4, 0, 8, 0, 8.0, 3.0))
    assert cost.seconds(Load(4, 0, 4, 0)) == pytest.approx(3.0, rel=0.05)
