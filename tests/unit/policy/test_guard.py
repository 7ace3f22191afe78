"""The guard against a simulated server: whatever drafting costs and brings, the loss against plain decoding stays small."""

import itertools

import numpy as np
import pytest

from vllm_edsd.policy.base import Step
from vllm_edsd.policy.fixed import Fixed
from vllm_edsd.policy.guard import Guard


def simulate(guard, steps, cost, length, requests=1, seed=0, noise=0.1):
    """Seconds for `steps` steps and tokens emitted; a drafted step costs `cost` plain ones and emits `length` on average."""
    random = np.random.default_rng(seed)
    total, emitted, before, drafts = 0.0, 0, False, []
    names = [f"r{number}" for number in range(requests)]
    for _ in range(steps):
        now = guard.start(names)
        drafts.append(now)
        tokens = int(1 + (random.random() < length - 1)) * requests if before else requests
        # The half of a drafted step that drafts, and the half that verifies what the step before drafted.
        seconds = 0.05 * (1 + (cost - 1) * (0.5 * now + 0.5 * before)) * max(0.5, random.normal(1, noise))
        guard.timed(Step(requests, 100, requests, int(now), tokens, seconds))
        total, emitted, before = total + seconds, emitted + tokens, now
    return total, emitted, drafts


@pytest.mark.parametrize("cost", [1.1, 1.5, 2.0, 3.0])
def test_a_drafter_that_loses_costs_little(cost):
    total, emitted, drafts = simulate(Guard(Fixed(3)), 8000, cost, 1.02)
    assert (emitted / total) / (1 / 0.05) > 0.98
    assert sum(drafts[4000:]) < 0.15 * 4000


def test_without_the_guard_it_costs_much():
    total, emitted, _ = simulate(Fixed(3), 8000, 2.0, 1.02)
    assert (emitted / total) / (1 / 0.05) < 0.6


def test_a_drafter_that_gains_is_used():
    total, emitted, drafts = simulate(Guard(Fixed(3)), 4000, 1.2, 1.8)
    assert sum(drafts) > 0.95 * len(drafts)
    assert (emitted / total) / (1 / 0.05) > 0.97 * 1.8 / 1.2


def test_it_changes_its_mind_when_the_workload_does():
    guard = Guard(Fixed(3))
    simulate(guard, 1500, 1.5, 1.1)
    assert not guard.now.drafts
    drafts = simulate(guard, 3000, 1.5, 1.95)[2]
    assert sum(drafts[-500:]) > 400


@pytest.mark.parametrize(("later", "drafts"), [(0.0, True), (0.02, False)])
def test_what_drafting_costs_beside_its_steps_counts(later, drafts):
    """Of 50 ms a token drafting saves 12.5 ms in its steps."""
    guard = Guard(Fixed(3))
    guard.reads(later, 0.0)
    found = simulate(guard, 3000, 1.2, 1.6)[2]
    assert (sum(found[-1500:]) > 0.9 * 1500) == drafts
    assert guard.state()["guard_drafts"] == drafts


@pytest.mark.parametrize(("now", "least", "most"), [(0.0, 100, 1000), (4.0, 1, 8)])
def test_a_trial_of_drafts_waits_until_beginning_costs_little(now, least, most):
    """2% of 50 ms for each of 30,000 steps are 30 s: seven beginnings of four seconds."""
    guard = Guard(Fixed(3))
    simulate(guard, 3000, 1.2, 1.15)
    assert not guard.now.drafts
    guard.reads(0.0, now)
    drafts = simulate(guard, 30000, 1.2, 1.15)[2]
    assert least <= sum(after and not before for before, after in itertools.pairwise(drafts)) <= most


def test_a_drafter_that_has_come_to_gain_is_found_out_though_beginning_costs_much():
    guard = Guard(Fixed(3))
    simulate(guard, 1500, 2.0, 1.1)
    guard.reads(0.0, 2.0)
    assert sum(simulate(guard, 8000, 1.2, 1.9)[2][-1000:]) > 950


@pytest.mark.parametrize("seed", range(5))
def test_a_way_that_becomes_much_slower_is_left_soon(seed):
    guard = Guard(Fixed(3))
    simulate(guard, 4000, 1.2, 1.9, seed=seed)
    assert guard.now.drafts and guard.now.until_trial > 100  # drafting has long been clearly better
    drafts = simulate(guard, 100, 8.0, 1.9, seed=seed)[2]
    assert not any(drafts[40:])


def test_batch_sizes_are_judged_apart():
    guard = Guard(Fixed(3))
    for _ in range(6):
        simulate(guard, 300, 1.2, 1.8, requests=1)
        simulate(guard, 300, 2.5, 1.1, requests=16)
    assert guard.contests.sizes[1].drafts and not guard.contests.sizes[5].drafts


class Promising(Fixed):
    """Foresees so much, whatever comes of it."""

    def __init__(self, promised):
        super().__init__(3)
        self.promised = promised

    def promise(self, requests):
        return self.promised


@pytest.mark.parametrize(("promised", "first"), [(1.2, True), (1.0, True), (0.9, False)])
def test_a_new_batch_size_begins_as_the_policy_foresees(promised, first):
    assert Guard(Promising(promised)).start(["a"]) == first


def test_what_was_foreseen_wrongly_is_found_out():
    guard = Guard(Promising(0.9))
    drafts = simulate(guard, 3000, 1.2, 1.8)[2]
    assert not any(drafts[:90]) and sum(drafts[-1500:]) > 0.95 * 1500


def test_a_size_above_one_that_lost_begins_without_drafts_whatever_is_promised():
    guard = Guard(Promising(1.5))
    simulate(guard, 1500, 2.5, 1.1, requests=2)
    assert not guard.start(["a"] * 16)


def test_state_tells_which_way_is_used():
    guard = Guard(Fixed(3))
    assert guard.state()["guard_drafts"] == 1.0
    simulate(guard, 1500, 2.0, 1.1)
    assert guard.state()["guard_drafts"] == 0.0


def test_a_clock_that_jumps_moves_nothing():
    guard = Guard(Fixed(3))
    simulate(guard, 600, 1.2, 1.8)
    for seconds in (-5.0, 0.0, 1e9):
        guard.start(["r0"])
        guard.timed(Step(1, 100, 1, 1, 1, seconds))
    assert sum(simulate(guard, 300, 1.2, 1.8)[2]) > 280


@pytest.mark.parametrize("paid", [True, False])
def test_a_larger_batch_starts_as_the_smaller_one_ended(paid):
    guard = Guard(Fixed(3))
    simulate(guard, 1500, *((1.2, 1.8) if paid else (2.0, 1.1)), requests=4)
    assert guard.start([f"r{number}" for number in range(32)]) == paid
