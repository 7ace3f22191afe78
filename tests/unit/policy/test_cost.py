import numpy as np
import pytest

from vllm_edsd.policy.base import Step
from vllm_edsd.policy.cost import CostModel, Load

TRUTH = np.array([0.050, 0.002, 0.003, 0.004, 0.001, 0.005])


def steps(count, seed=0, noise=0.05, truth=TRUTH):
    random = np.random.default_rng(seed)
    for _ in range(count):
        requests = int(random.integers(1, 17))
        drafts, drafted = int(random.integers(0, 4 * requests)), int(random.integers(0, 6))
        context = int(random.integers(100, 1000)) * requests
        seconds = float(Load(requests, context, drafts, drafted).row() @ truth) * random.normal(1, noise)
        yield Step(requests, context, requests + drafts, drafted, requests, seconds)


def test_learns_what_steps_cost():
    cost = CostModel()
    for step in steps(1500):
        cost.learn(step)
    assert cost.weights[:5] == pytest.approx(TRUTH[:5], rel=0.25)
    for load in (Load(1, 300, 0, 0), Load(1, 300, 5, 5), Load(16, 4000, 40, 3)):
        assert cost.seconds(load) == pytest.approx(float(load.row() @ TRUTH), rel=0.05)


def test_a_step_told_twice_counts_once():
    once, twice = CostModel(), CostModel()
    for number in range(20):
        step = Step(1, 100, 2 + number % 3, 1, 1.0, 0.1 + 0.01 * (number % 4))
        for model in (once, twice, twice):
            model.learn(step)
    assert twice.prices == once.prices


def test_the_first_step_sets_the_scale():
    cost = CostModel()
    cost.learn(Step(1, 100, 1, 0, 1, 2.0))
    assert cost.seconds(Load(1, 100, 0, 0)) == pytest.approx(2.0, rel=0.01)
    assert cost.seconds(Load(1, 100, 1, 1)) > cost.seconds(Load(1, 100, 0, 0))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 900.0, 1e-9])
def test_clocks_that_jump_are_not_believed(seconds):
    cost = CostModel()
    for step in steps(200):
        cost.learn(step)
    before = cost.weights.copy()
    cost.learn(Step(1, 100, 1, 0, 1, seconds))
    assert cost.weights == pytest.approx(before)


def test_a_machine_that_became_slower_is_believed_in_time():
    cost = CostModel()
    for step in steps(300):
        cost.learn(step)
    for step in steps(300, truth=TRUTH * 8):
        cost.learn(step)
    assert cost.seconds(Load(4, 1000, 4, 2)) == pytest.approx(8 * float(Load(4, 1000, 4, 2).row() @ TRUTH), rel=0.1)


def test_no_marginal_cost_is_ever_negative():
    cost = CostModel()
    for step in steps(500, noise=0.5):
        cost.learn(step)
        assert (cost.weights > 0).all()
