"""The soak's verdicts fall both ways."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def checks():
    path = Path(__file__).parents[2] / "benchmarks" / "soak" / "checks.py"
    spec = importlib.util.spec_from_file_location("soak_checks", path)
    module = sys.modules["soak_checks"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soak_checks"]


@pytest.mark.parametrize(
    ("leak", "holds"), [(0.0, True), (0.05, True), (0.2, False), (-0.2, False)], ids=["flat", "almost", "leaks", "shrinks"]
)
def test_memory(checks, leak, holds):
    times = list(range(1, 901))
    sizes = [1500 if time < 150 else 2000 + leak * (time - 150) for time in times]
    assert checks.flat("memory", times, sizes).holds is holds


def test_the_warm_up_of_a_short_run_is_longer_than_a_quarter(checks):
    times = list(range(1, 121))
    assert checks.flat("memory", times, [1500 if time < 45 else 2000 for time in times]).holds
    assert not checks.flat("memory", times, [1500 if time < 95 else 2000 for time in times]).holds


def test_too_few_samples_say_nothing(checks):
    assert not checks.flat("memory", [100.0], [5.0]).holds


def record(level="INFO", **more):
    return json.dumps({"time": "2026-01-01T00:00:00", "level": level, "logger": "vllm", "message": "hello", **more})


@pytest.mark.parametrize("line", ["INFO hello", '{"level": "INFO"}', "[1]", "3"])
def test_a_line_that_is_no_record_is_told(checks, line):
    assert checks.json_lines("json", [record(), record("ERROR")]).holds
    found = checks.json_lines("json", [record(), line])
    assert not found.holds and repr(line) in found.seen


def test_a_silent_server_is_no_proof(checks):
    assert not checks.json_lines("json", []).holds


@pytest.mark.parametrize(
    ("lines", "others"),
    [([record("ERROR")], []), ([record(exc_info="Traceback")], []), ([], ["Traceback (most recent call last):"])],
    ids=["error", "exception", "stderr"],
)
def test_errors_are_told_unless_they_were_provoked(checks, lines, others):
    good = [record(), record("WARNING"), record("ERROR", message="the model `another` is not here")]
    assert checks.quiet("quiet", good, ["a bar: 100%"], "`another`").holds
    assert not checks.quiet("quiet", good + lines, others, "`another`").holds
