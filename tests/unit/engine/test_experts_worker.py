"""What a worker with fewer experts says of itself: in the log, and on /metrics as the catalogue has it."""

import logging

import pytest
import torch
from prometheus_client import CollectorRegistry

from vllm_edsd.engine import experts_worker
from vllm_edsd.experts.usage import Usage
from vllm_edsd.observability.catalog import COMMON, EXPERTS, METRICS
from vllm_edsd.observability.exporter import SnapshotCollector
from vllm_edsd.observability.snapshots import HEARTBEAT, Writer
from vllm_edsd.observability.tally import Tally

SETTINGS = {"plan": "/plans/half", "mode": "prefill", "measured_for": "prefill", "fingerprint": "abc", "share": 0.5}


@pytest.fixture
def said(monkeypatch, caplog):
    # vLLM's own loggers hand nothing on to the root.
    monkeypatch.setattr(experts_worker, "logger", logging.getLogger("test.experts"))
    return caplog


def test_the_page_has_the_catalogues_figures_and_says_lossy(tmp_path, said):
    tally, usage = Tally(("model", "0")), Usage([2, 5], 8, torch.device("cpu"))
    experts_worker.announce(tally, SETTINGS)
    tally.watch("experts", lambda: experts_worker.show(tally, usage))
    usage.count(2, torch.tensor([[0, 1], [1, 2], [3, 4]]), [torch.tensor([[0], [1]]), torch.tensor([[3, 4]])])
    usage.count(5, torch.tensor([[0, 1], [0, 1], [0, 1]]), [])
    Writer(tally, tmp_path, "worker").write()
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(tmp_path))
    families = [family for family in registry.collect() if family.name != HEARTBEAT]
    assert {family.name: {frozenset(sample.labels) for sample in family.samples} for family in families} == {
        metric.name: {frozenset((*COMMON, *metric.labels))} for metric in METRICS if metric.place == EXPERTS
    }

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"edsd:{name}", {"model_name": "model", "engine": "0", **labels})

    assert value("lossy_experts_info", plan="half", mode="prefill", version="abc") == 1
    served = {("2", "model"): (6, 5), ("2", "served"): (4, 4), ("5", "model"): (6, 2), ("5", "served"): (6, 2)}
    for (layer, routing), expected in served.items():
        found = [value(f"{kind}_experts_total", layer=layer, routing=routing) for kind in ("activated", "distinct")]
        assert tuple(found) == expected, (layer, routing)
        assert (value("moe_tokens_total", layer=layer), value("moe_steps_total", layer=layer)) == (3, 1)
    assert "LOSSY" in said.text
    assert "/plans/half" in said.text and "50%" in said.text
    assert len(said.records) == 1


def test_a_plan_for_another_mode_is_told(said):
    experts_worker.announce(Tally(("model", "0")), {**SETTINGS, "mode": "all"})
    assert "measured for prefill and is used for all" in said.text
