"""A server as an operator meets it: its metrics, and another drafter while it serves."""

import asyncio
import time
from collections import Counter

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_edsd.bench.load import MODEL, Load
from vllm_edsd.drafters.checkpoint import resolve, version
from vllm_edsd.engine.server import serve
from vllm_edsd.observability.catalog import COMMON, EXPERTS, METRICS, ROLLED_BACK, VALUES
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
ABOUT = ("a fox", "the sea", "Rome", "bread", "a clock", "rain", "two brothers", "the moon")


def exported(server) -> dict[str, set]:
    """Our families on /metrics, with the labels of each but the buckets'; no label says what the catalogue does not list."""
    families = [one for one in text_string_to_metric_families(server.get("/metrics")) if one.name.startswith("edsd:")]
    for family in families:
        for sample in family.samples:
            assert all(value in VALUES.get(label, (value,)) for label, value in sample.labels.items()), sample
    return {family.name: {frozenset(sample.labels) - {"le"} for sample in family.samples} for family in families}


def by_engine(page: str, name: str) -> Counter[str]:
    """A counter's sum for each engine."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == f"{name}_total":
                found[sample.labels["engine"]] += sample.value
    return found


def test_metrics_are_those_of_the_table_and_a_bad_drafter_is_rolled_back(target, noise, tmp_path, monkeypatch):
    # Two engines, and two API servers before them: either tells all, and the page is made in another way than by one.
    arguments = [*ARGUMENTS, "--dtype", "float32", "--edsd", "smollm2-eagle3"]
    arguments += ["--data-parallel-size", "2", "--api-server-count", "2"]
    environment = {"EDSD_ADMIN_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    rolled_back = [
        f'edsd:drafter_reloads_total{{engine="{engine}",model_name="{MODEL}",outcome="rolled_back"}} 1.0' for engine in "01"
    ]
    with serve(str(target), arguments, tmp_path / "log", environment=environment) as server:
        admin = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        prompts = [Prompt(id=about, turns=[f"Write a story about {about}."]) for about in ABOUT]

        with asyncio.Runner() as runner, Load(runner, server.url, max_tokens=48, temperature=0) as load:
            before = load.send(prompts, 4)
            assert httpx.get(f"{server.url}/edsd/drafter").status_code == 401
            state = admin.post("/edsd/drafter", json={"drafter": str(noise)}).json()
            assert (state["state"], state["version"]) == ("watched", version(noise))
            # Which engine a request goes to is vLLM's choice: until each has had enough of the noise.
            for _ in range(8):
                during = load.send(prompts, 4)
                assert [reply.error for reply in (*before, *during)] == [None] * 16
                assert [reply.text for reply in before] == [reply.text for reply in during]
                time.sleep(2.5)  # until all processes have written
                if all(line in server.get("/metrics") for line in rolled_back):
                    break
        state = admin.get("/edsd/drafter").json()
        assert (state["last_reload"], state["version"]) == (ROLLED_BACK, version(resolve("smollm2-eagle3")))

        found = exported(server)
        assert found == {
            metric.name: {frozenset((*COMMON, *metric.labels))} for metric in METRICS if metric.place != EXPERTS
        }
        page = server.get("/metrics")
        assert all(line in page for line in rolled_back)
        for engine in "01":
            common = f'engine="{engine}",model_name="{MODEL}"'
            for line in (
                f'edsd:drafter_info{{drafter="smollm2-eagle3",{common},version="{state["version"]}"}}',
                *(
                    f'edsd:tracked_requests{{engine="{engine}",holder="{holder}",model_name="{MODEL}"}} 0.0'
                    for holder in ("scheduler", "policy", "drafter")
                ),
            ):
                assert line in page
        ours, theirs = (by_engine(page, f"{prefix}accepted_tokens") for prefix in ("edsd:", "vllm:spec_decode_num_"))
        assert ours == theirs and min(ours.values()) > 0 and len(ours) == 2
