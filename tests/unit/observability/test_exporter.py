"""From counting to the page, through the files."""

import math

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from vllm_edsd.observability.acceptance import AcceptanceWatch
from vllm_edsd.observability.exporter import SnapshotCollector
from vllm_edsd.observability.snapshots import Writer
from vllm_edsd.observability.tally import Tally


def page(directory):
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(directory))
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_drafts_arrive_on_the_page_by_engine_place_and_request(tmp_path):
    for engine in ("0", "1"):
        tally = Tally(("model", engine))
        watch = AcceptanceWatch(tally, 4)
        watch.verified("a", 4, 2)
        watch.verified("a", 1, 1)
        watch.verified("b", 2, 0)
        watch.finished("a")
        watch.finished("never drafted")
        Writer(tally, tmp_path, "engine").write()
    samples = page(tmp_path)
    for engine in ("0", "1"):
        common = (("engine", engine), ("model_name", "model"))

        def value(name, *labels, common=common):
            return samples[name, *sorted((*common, *labels))]

        verified = [value("edsd:verified_tokens_total", ("position", str(place))) for place in range(4)]
        accepted = [value("edsd:accepted_tokens_total", ("position", str(place))) for place in range(4)]
        assert (verified, accepted) == ([3, 2, 1, 1], [2, 1, 0, 0])
        assert value("edsd:step_acceptance_length_sum") / value("edsd:step_acceptance_length_count") == 2
        assert value("edsd:step_acceptance_length_bucket", ("le", "2.0")) == 2
        assert value("edsd:draft_length_bucket", ("le", "+Inf")) == value("edsd:draft_length_count") == 3
        assert (value("edsd:request_acceptance_length_sum"), value("edsd:request_acceptance_length_count")) == (2.5, 1)
        assert value("edsd:tracked_requests", ("holder", "scheduler")) == 1
        assert math.isclose(value("edsd:draft_length_sum"), 7)


def test_engine_and_worker_share_a_family(tmp_path):
    for place in ("engine", "worker"):
        Writer(Tally(("model", "0")), tmp_path, place).write()
    names = [name for name, *_ in page(tmp_path)]
    assert names == ["edsd:heartbeat_timestamp_seconds"] * 2


def test_a_directory_that_is_gone_costs_figures_and_is_told_once(tmp_path, caplog):
    writer = Writer(Tally(("model", "0")), tmp_path / "gone", "engine")
    writer.write()
    writer.write()
    assert len(caplog.records) == 1
    assert str(tmp_path / "gone") in caplog.text
    assert page(tmp_path / "gone") == {}
    (tmp_path / "gone").mkdir()
    writer.write()
    assert page(tmp_path / "gone")
