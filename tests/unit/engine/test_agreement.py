"""Ranks whose own policies would differ decide alike."""

import random
from collections import deque

import numpy as np

from vllm_edsd.engine.agreement import Follower, Leader
from vllm_edsd.policy.base import Drafting, DraftPolicy, Step

REQUESTS = ["a", "b", "c"]


class Group:
    """Stands in for vLLM's tensor-parallel group: what rank 0 tells is read in the same order."""

    def __init__(self):
        self.told = deque()

    def broadcast_object(self, decision=None):
        if decision is None:
            return self.told.popleft()
        self.told.append(decision)
        return decision


class Dice(DraftPolicy):
    def __init__(self, seed):
        super().__init__(4)
        self.dice, self.steps = random.Random(seed), []

    def start(self, requests):
        return self.dice.random() < 0.7

    def proceed(self, drafting):
        return self.dice.random() < 0.7

    def cut(self, drafting):
        return np.array([self.dice.randint(0, drafting.drafted) for _ in drafting.requests])

    def timed(self, step):
        self.steps.append(step)


def decisions(policy):
    """What `policy` decides at one step: how many tokens are drafted, and how many of each request are kept."""
    policy.timed(Step(3, 30, 3, 0, 3, 0.1))
    if not policy.start(REQUESTS):
        return 0, []
    drafting = Drafting.begin(REQUESTS)
    while True:
        drafting.add(np.full(3, 0.5), np.full(3, 1.0))
        if drafting.drafted == policy.max_tokens or not policy.proceed(drafting):
            return drafting.drafted, policy.cut(drafting).tolist()


def test_followers_decide_as_the_leader_does():
    group, own = Group(), Dice(0)
    leader, follower = Leader(own, group), Follower(own.max_tokens, group)
    alike = [decisions(leader) == decisions(follower) for _ in range(200)]
    assert all(alike) and not group.told
    assert len(own.steps) == 200


def test_the_control_differs():
    one, two = Dice(0), Dice(1)
    assert [decisions(one) for _ in range(20)] != [decisions(two) for _ in range(20)]
