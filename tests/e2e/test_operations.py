"""A server as an operator meets it: its metrics, and another drafter while it serves."""

import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_edsd.bench.load import MODEL, Load
from vllm_edsd.drafters.checkpoint import resolve, version
from vllm_edsd.engine.server import serve
from vllm_edsd.observability.catalog import COMMON, EXPERTS, METRICS, ROLLED_BACK
from vllm_edsd.prompts import Prompt

pytestmark = pytest.mark.e2e

TOKEN = "0123456789abcdef"
ARGUMENTS = [
    "--served-model-name",
    MODEL,
    "--enforce-eager",
    "--max-model-len",
    "512",
    "--kv-cache-memory-bytes",
    str(1 << 28),
]
ABOUT = ("a fox", "the sea", "Rome", "bread")


def exported(server) -> dict[str, set]:
    """Our families on /metrics, with the labels of each but the buckets'."""
    return {
        family.name: {frozenset(sample.labels) - {"le"} for sample in family.samples}
        for family in text_string_to_metric_families(server.get("/metrics"))
        if family.name.startswith("edsd:")
    }


def test_metrics_are_those_of_the_table_and_a_bad_drafter_is_rolled_back(target, noise, tmp_path, monkeypatch):
    # Two API servers: either tells all, and the page is made in another way than by one.
    arguments = [*ARGUMENTS, "--dtype", "float32", "--edsd", "smollm2-eagle3", "--api-server-count", "2"]
    environment = {"EDSD_ADMIN_TOKEN": TOKEN}
    with serve(str(target), arguments, tmp_path / "log", environment=environment) as server:
        admin = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        prompts = [Prompt(id=about, turns=[f"Write a story about {about}."]) for about in ABOUT]

        with Load(server.url, max_tokens=48, temperature=0) as load:
            before = load.send(prompts, 2)
            assert httpx.get(f"{server.url}/edsd/drafter").status_code == 401
            state = admin.post("/edsd/drafter", json={"drafter": str(noise)}).json()
            assert (state["state"], state["version"]) == ("watched", version(noise))
            during = load.send(prompts, 2)
        assert [reply.error for reply in (*before, *during)] == [None] * 8
        assert [reply.text for reply in before] == [reply.text for reply in during]
        state = admin.get("/edsd/drafter").json()
        assert (state["last_reload"], state["version"]) == (ROLLED_BACK, version(resolve("smollm2-eagle3")))

        time.sleep(2.5)  # until both processes have written
        found = exported(server)
        assert found == {
            metric.name: {frozenset((*COMMON, *metric.labels))} for metric in METRICS if metric.place != EXPERTS
        }
        page = server.get("/metrics")
        for line in (
            f'edsd:drafter_info{{drafter="smollm2-eagle3",engine="0",model_name="{MODEL}",version="{state["version"]}"}}',
            f'edsd:drafter_reloads_total{{engine="0",model_name="{MODEL}",outcome="rolled_back"}} 1.0',
            *(
                f'edsd:tracked_requests{{engine="0",holder="{holder}",model_name="{MODEL}"}} 0.0'
                for holder in ("scheduler", "policy", "drafter")
            ),
        ):
            assert line in page
