"""What the scheduler's figures are with speculation and, where only the experts are fewer, without."""

from types import SimpleNamespace

import pytest

from vllm_edsd.engine import observer
from vllm_edsd.observability.tally import Tally


@pytest.fixture
def watched(monkeypatch):
    """A scheduler that is watched, made for a configuration, and the tally of what it tells."""
    tally = Tally(("m", "0"))
    monkeypatch.setattr(observer, "start", lambda config, place: tally)
    monkeypatch.setattr(observer, "show_drafter", lambda tally, folder: tally.put("edsd:drafter_info", 1.0, folder, "v"))

    class Scheduler:
        def __init__(self, vllm_config):
            self.freed = []

        def make_spec_decoding_stats(self, spec_decoding_stats, drafted, accepted, invalid, request_id):
            return spec_decoding_stats

        def _free_request(self, request, delay_free_blocks=False):
            self.freed.append(request.request_id)
            return "freed"

    observer._watch(Scheduler)

    def make(speculative, options):
        config = SimpleNamespace(speculative_config=speculative, additional_config={"edsd": options})
        return Scheduler(config), tally

    return make


def step(scheduler):
    told = scheduler.make_spec_decoding_stats("stats", 3, 2, None, "r")
    return told, scheduler._free_request(SimpleNamespace(request_id="r"), delay_free_blocks=True)


def test_without_speculation_nothing_is_told_of_drafts(watched):
    scheduler, tally = watched(None, {"experts": {"plan": "p"}})
    assert step(scheduler) == ("stats", "freed") and scheduler.freed == ["r"]
    assert (tally.values, tally.snapshot()["histograms"]) == ({}, {})


def test_with_speculation_and_fewer_experts_drafts_are_told_of(watched):
    speculative = SimpleNamespace(num_speculative_tokens=3, model="drafter")
    scheduler, tally = watched(speculative, {"experts": {"plan": "p"}})
    assert step(scheduler) == ("stats", "freed")
    assert tally.values["edsd:policy_info"] == {("fixed", "standard", "3"): 1.0}
    assert tally.values["edsd:drafter_info"] == {("drafter", "v"): 1.0}
    assert "edsd:request_acceptance_length" in tally.snapshot()["histograms"]
