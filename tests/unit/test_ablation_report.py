"""The ablation's figures: when a run reaches what another ends at, and intervals over seeds."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def report():
    path = Path(__file__).parents[2] / "benchmarks" / "ablation" / "report.py"
    spec = importlib.util.spec_from_file_location("report", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(seed, *points):
    curve = [{"seconds": seconds, "length": length} for seconds, length in points]
    return {"seed": seed, "curve": curve, "seconds": points[-1][0]}


def test_a_goal_is_reached_between_two_evaluations(report):
    other = run(0, (50.0, 1.5), (100.0, 2.0))
    assert report.crossing(run(0, (20.0, 1.8), (40.0, 2.2)), other) == pytest.approx(0.3)
    assert report.crossing(run(0, (20.0, 3.0)), other) == pytest.approx(0.1)  # from length 1 at the start
    assert report.crossing(run(0, (200.0, 1.99)), other) is None


def test_runs_meet_the_reference_of_their_seed(report):
    reference = [run(0, (100.0, 2.0)), run(1, (200.0, 3.0))]
    runs = [run(1, (100.0, 3.0)), run(0, (80.0, 2.0))]
    assert report.reached(runs, reference) == report.interval([0.5, 0.8])
    assert report.reached([run(0, (80.0, 2.0)), run(1, (80.0, 2.0))], reference) == "reached by 1 of 2"


def test_intervals_are_students(report):
    # Half of the 95% interval of three values 1, 2, 3: 4.3027 * 1 / sqrt(3).
    assert report.half([1.0, 2.0, 3.0]) == pytest.approx(2.484, abs=1e-3)
    assert report.interval([1.0, 2.0, 3.0]) == "2.00 ± 2.48"
    assert report.interval([-1.0, 1.0], "{:+.1f}", "%") == "+0.0 ± 12.7%"
