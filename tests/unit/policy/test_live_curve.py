"""A profiled cost curve that follows what steps are seen to take."""

import numpy as np
import pytest

from vllm_edsd.policy.live_curve import LiveCurve

PROFILED = [(1, 10.0), (4, 11.0), (8, 13.0), (64, 40.0), (128, 80.0)]


@pytest.fixture
def curve():
    return LiveCurve(PROFILED, padded=8)


def test_without_steps_it_is_the_profile(curve):
    assert curve.refit() == PROFILED


def test_a_difference_is_added_everywhere(curve):
    for _ in range(5):
        curve.observe(4, 14.0)
    assert curve.refit() == [(size, cost + 3) for size, cost in PROFILED]


def test_differences_are_interpolated_between_the_sizes_seen(curve):
    curve.observe(1, 12.0)
    curve.observe(64, 40.0)
    assert dict(curve.refit()) == pytest.approx({1: 12.0, 4: 11 + 2 * 60 / 63, 8: 13 + 2 * 56 / 63, 64: 40.0, 128: 80.0})


def test_sizes_within_cuda_graphs_are_padded_and_others_are_not(curve):
    curve.observe(5, 13.0)  # runs as 8
    curve.observe(36, 26.5)  # half-way between 8 and 64
    assert curve.refit() == PROFILED


@pytest.mark.parametrize("beyond", [128, 200])
def test_beyond_the_last_size_the_last_one_learns(curve, beyond):
    curve.observe(beyond, 90.0)
    assert dict(curve.refit())[128] == 90.0


def test_the_median_does_not_see_a_pause(curve):
    for milliseconds in (11.0, 11.0, 9000.0, 11.0, 11.0):
        curve.observe(4, milliseconds)
    assert curve.refit() == PROFILED


@pytest.mark.parametrize("milliseconds", [float("nan"), float("inf"), 0.0, -3.0])
def test_what_cannot_be_true_is_left_out(curve, milliseconds):
    curve.observe(4, milliseconds)
    assert curve.refit() == PROFILED


def test_it_follows_a_machine_that_changes(curve):
    for _ in range(30):
        curve.observe(4, 31.0)
        last = curve.refit()
    assert last[1][1] == pytest.approx(31.0)
    for _ in range(30):
        curve.observe(4, 11.0)
        last = curve.refit()
    assert last[1][1] == pytest.approx(11.0, abs=0.1)


def test_no_cost_falls_to_nothing(curve):
    curve.observe(1, 1e-6)
    assert all(cost >= 0.1 * profiled for (_, cost), (_, profiled) in zip(curve.refit(), PROFILED, strict=True))
    assert np.isfinite([cost for _, cost in curve.refit()]).all()
