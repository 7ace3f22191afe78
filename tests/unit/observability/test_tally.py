import threading

import pytest

from vllm_edsd.observability.catalog import METRICS
from vllm_edsd.observability.tally import Tally


@pytest.fixture
def tally() -> Tally:
    return Tally(("model", "0"))


def test_names_are_unique_and_follow_prometheus_habits():
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert metric.name.startswith("edsd:")
        assert not metric.name.endswith("_total")
        assert metric.buckets == tuple(sorted(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert metric.meaning
        assert metric.unit


def test_counters_add_gauges_replace_and_info_has_one_series(tally):
    tally.count("edsd:steps", 2, "true")
    tally.count("edsd:steps", 1, "true")
    tally.count("edsd:steps", 1, "false")
    tally.put("edsd:tracked_requests", 5, "policy")
    tally.put("edsd:tracked_requests", 3, "policy")
    tally.replace("edsd:drafter_info", "a", "1")
    tally.replace("edsd:drafter_info", "b", "2")
    tally.total("edsd:judged_tokens", 7)
    values = tally.snapshot()["values"]
    assert values["edsd:steps"] == [[["true"], 3], [["false"], 1]]
    assert values["edsd:tracked_requests"] == [[["policy"], 3]]
    assert values["edsd:drafter_info"] == [[["b", "2"], 1]]
    assert values["edsd:judged_tokens"] == [[[], 7]]


def test_a_value_on_a_bound_belongs_to_its_bucket_and_large_ones_to_the_last(tally):
    tally.observe("edsd:draft_length", [1, 2, 2, 1000])
    counts = tally.snapshot()["histograms"]["edsd:draft_length"]
    assert counts[:2] == [1, 2]
    assert counts[-2:] == [1, 1005]
    tally.spread("edsd:draft_length", {3: 4})
    counts = tally.snapshot()["histograms"]["edsd:draft_length"]
    assert (counts[2], sum(counts[:-1]), counts[-1]) == (4, 4, 12)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda tally: tally.count("edsd:unheard"), "unheard"),
        (lambda tally: tally.count("edsd:steps", 1), "labels"),
        (lambda tally: tally.count("edsd:tracked_requests", 1, "policy"), "gauge"),
        (lambda tally: tally.observe("edsd:steps", [1]), "counter"),
    ],
)
def test_what_the_catalogue_does_not_have_is_refused(tally, call, match):
    with pytest.raises((KeyError, ValueError), match=match):
        call(tally)


def test_no_count_is_lost_between_threads(tally):
    def work():
        for _ in range(2000):
            tally.count("edsd:drafted_tokens", 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        tally.snapshot()
    for thread in threads:
        thread.join()
    assert tally.snapshot()["values"]["edsd:drafted_tokens"] == [[[], 8000]]
