import numpy as np
import pytest

from vllm_edsd.policy.estimate import AcceptanceEstimator

REQUESTS = ["a", "b", "c", "d"]


def workload(estimator, truth, steps, seed=0, positions=3):
    """Drafts whose tokens are accepted with chance truth(top, position); returns the last estimates and the true chances."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        top = random.uniform(0.05, 0.95, (len(REQUESTS), positions))
        features = estimator.features(REQUESTS, top, -np.log(top))
        chances = truth(top, np.arange(positions)[None, :])
        hits = random.random(top.shape) < chances
        accepted = np.logical_and.accumulate(hits, axis=1).sum(axis=1)
        estimates = estimator.chances(features)
        estimator.learn(REQUESTS, features, np.full(len(REQUESTS), positions), accepted)
    return estimates, chances


def test_starts_as_the_drafters_own_probability():
    estimator = AcceptanceEstimator()
    top = np.array([[0.2, 0.9]])
    assert estimator.chances(estimator.features(["new"], top, np.zeros((1, 2)))) == pytest.approx(top, abs=1e-6)


@pytest.mark.parametrize(
    "truth",
    [lambda top, place: top**2, lambda top, place: np.minimum(1, 0.3 + top / 2), lambda top, place: top * 0.7**place],
    ids=["overconfident", "underconfident", "by-position"],
)
def test_learns_a_workload_and_is_calibrated(truth):
    estimator = AcceptanceEstimator()
    workload(estimator, truth, 600)
    assert estimator.calibration_error() < 0.06
    estimates, chances = zip(*(workload(estimator, truth, 1, seed) for seed in range(1, 30)), strict=True)
    assert np.abs(np.concatenate(estimates) - np.concatenate(chances)).mean() < 0.08


def test_follows_a_workload_that_changes():
    estimator = AcceptanceEstimator()
    workload(estimator, lambda top, place: top, 400)
    workload(estimator, lambda top, place: 0.2 * top, 600)
    estimates, chances = workload(estimator, lambda top, place: 0.2 * top, 1, seed=5)
    assert np.abs(estimates - chances).mean() < 0.08


def test_tokens_behind_a_rejection_say_nothing():
    seen, unseen = AcceptanceEstimator(), AcceptanceEstimator()
    top = np.array([[0.5, 0.5, 0.5]])
    features = seen.features(["a"], top, np.zeros((1, 3)))
    seen.learn(["a"], features, np.array([3]), np.array([0]))
    unseen.learn(["a"], features[:, :1], np.array([1]), np.array([0]))
    assert seen.weights == pytest.approx(unseen.weights)


def test_nothing_verified_teaches_nothing():
    estimator = AcceptanceEstimator()
    before = estimator.weights.copy()
    estimator.learn(["a"], estimator.features(["a"], np.array([[0.5]]), np.array([[1.0]])), np.array([0]), np.array([0]))
    assert estimator.weights == pytest.approx(before) and not estimator.recent


def test_figures_that_are_no_numbers_do_no_harm():
    estimator = AcceptanceEstimator()
    features = estimator.features(["a"], np.array([[np.nan]]), np.array([[np.inf]]))
    estimator.learn(["a"], features, np.array([1]), np.array([0]))
    assert np.isfinite(estimator.weights).all()


def test_forgets_finished_requests():
    estimator = AcceptanceEstimator()
    workload(estimator, lambda top, place: top, 2)
    estimator.forget(REQUESTS)
    assert not estimator.recent
