"""A real Prometheus scrapes two real servers under load: one drafter is the bundled one, the other's weights are noise.

The noise is drafted at a fixed length: a policy that adapts sees through it within ten drafts and verifies no more. Neither
target is an MoE's: beside them a page is scraped that has only what a worker with fewer experts counts.
"""

import asyncio
import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from vllm_edsd.bench.load import MODEL, Load
from vllm_edsd.engine import experts_worker
from vllm_edsd.engine.server import Server, serve
from vllm_edsd.experts.usage import Usage
from vllm_edsd.observability.exporter import SnapshotCollector
from vllm_edsd.observability.snapshots import Writer
from vllm_edsd.observability.tally import Tally
from vllm_edsd.prompts import Prompt

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="Prometheus is missing: `make tools` as root, or your system's package"
    ),
]

DEPLOY = Path(__file__).parents[2] / "deploy"
SMALL = ["--served-model-name", MODEL, "--enforce-eager", "--max-model-len", "512", "--kv-cache-memory-bytes", str(1 << 28)]
SMALL += ["--dtype", "float32"]  # bfloat16 is eight times slower where the processor has no instructions for it
PROMPTS = [
    Prompt(id=str(number), turns=[f"Write a long story about {hero}."])
    for number, hero in enumerate(("a fox and a crow", "a lighthouse", "two sisters", "the sea", "a clock", "a lost dog"))
]
# A week in seconds.
SHORTER = {"5m": "8s", "15m": "15s", "30m": "60s", "1h": "15s", "6h": "90s", "1d": "3s", "1w": "30s"}
# The servers are healthy by these, whatever the load.
SILENT = {"EdsdNothingVerified", "EdsdWorkerMetricsMissing", "EdsdEngineMetricsMissing", "EdsdMetricsMissing"}
PATIENCE = 150.0  # seconds


class Prometheus:
    """A running one, asked over its API."""

    def __init__(self, url: str):
        self.url = url

    def ask(self, path: str, **parameters: str) -> dict:
        """The `data` of an answer."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def has_data(self, query: str) -> bool:
        """Whether there is a series whose value now is a number."""
        return any(math.isfinite(float(series["value"][1])) for series in self.ask("query", query=query)["result"])

    def firing(self) -> set[tuple[str, str]]:
        """Alerts that fire: name and instance."""
        alerts = self.ask("alerts")["alerts"]
        return {(a["labels"]["alertname"], a["labels"].get("instance", "")) for a in alerts if a["state"] == "firing"}


def test_rules_and_dashboard_have_data_and_noise_fires_its_alert(target, noise, tmp_path):
    with contextlib.ExitStack() as stack:
        with ThreadPoolExecutor(2) as pool:
            options = (["smollm2-eagle3"], [str(noise), "--edsd.policy", "fixed"])
            started = [
                pool.submit(stack.enter_context, serve(str(target), [*SMALL, "--edsd", *chosen], tmp_path / f"log-{place}"))
                for place, chosen in enumerate(options)
            ]
            healthy, noisy = [start.result() for start in started]
        well, ill = (server.url.removeprefix("http://") for server in (healthy, noisy))
        lossy, worker = stack.enter_context(fewer_experts(tmp_path / "figures"))
        prometheus = stack.enter_context(scrape([well, ill, lossy], tmp_path))
        stack.enter_context(load(healthy, noisy))

        groups = yaml.safe_load((DEPLOY / "prometheus" / "edsd-rules.yaml").read_text())["groups"]
        recorded = [rule["record"] for group in groups for rule in group["rules"] if "record" in rule]
        queries = dashboard_queries(prometheus, f"({well}|{lossy})")
        seen: set[str] = set()

        # To clients the three are replicas of one model, and only one of them uses fewer experts.
        due = {("EdsdDrafterInert", ill), ("EdsdExpertsDiffer", "")}

        def everything() -> bool:
            worker.write()
            seen.update(query for query in {*recorded, *queries} - seen if prometheus.has_data(query))
            return len(seen) == len({*recorded, *queries}) and due <= prometheus.firing()

        wait(everything, lambda: f"without data: { ({*recorded, *queries} - seen) }; firing: {prometheus.firing()}")
        firing = prometheus.firing()
        assert ("EdsdDrafterInert", well) not in firing
        assert not SILENT & {alert for alert, _ in firing}
        rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}


@contextlib.contextmanager
def fewer_experts(folder: Path) -> Iterator[tuple[str, Writer]]:
    """Where a page with a worker's figures is, and what writes them: each time the layers have run another step."""
    folder.mkdir()
    tally, usage = Tally((MODEL, "0")), Usage([0, 1], 8, torch.device("cpu"))
    settings = {"plan": "half", "mode": "prefill", "measured_for": "prefill", "fingerprint": "01234567", "share": 0.5}
    experts_worker.announce(tally, settings)
    before = torch.tensor([[0, 1], [1, 2], [3, 4]])

    def step() -> None:
        for layer in (0, 1):
            usage.count(layer, before, [before[:, :1]])
        experts_worker.show(tally, usage)

    tally.watch("experts", step)
    writer = Writer(tally, folder, "worker")
    writer.write()
    registry = CollectorRegistry()
    registry.register(SnapshotCollector(folder))

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)  # as vLLM's page: the other type allows no colons
            self.end_headers()
            self.wfile.write(generate_latest(registry))

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"127.0.0.1:{server.server_port}", writer
        finally:
            server.shutdown()


@contextlib.contextmanager
def scrape(targets: list[str], folder: Path) -> Iterator[Prometheus]:
    """Prometheus at a scrape a second, with our rules in shorter time."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "edsd-rules.yaml").read_text())
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["expr"] = re.sub(r"\b\d+[mhdw]\b", lambda span: SHORTER[span[0]], rule["expr"])
            # Half an hour is a minute: a tenth of what must have been counted in it, for machines that are slow.
            rule["expr"] = re.sub(r">= (\d+)0\b", r">= \1", rule["expr"])
            if "for" in rule:
                rule["for"] = "2s"
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "vllm", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            prometheus = Prometheus(f"http://{address}")

            def ready() -> bool:
                with contextlib.suppress(OSError):
                    return prometheus.has_data("up == 1")
                return False

            wait(ready, (folder / "prometheus.log").read_text)
            yield prometheus
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def load(*servers: Server) -> Iterator[None]:
    """Three requests at a time on each server until the end of the block."""
    done = threading.Event()

    def send(server: Server) -> None:
        with asyncio.Runner() as runner, Load(runner, server.url, max_tokens=64, temperature=0) as greedy:
            while not done.is_set():
                greedy.send(PROMPTS, 3)

    with ThreadPoolExecutor(len(servers)) as pool:
        sending = [pool.submit(send, server) for server in servers]
        try:
            yield
        finally:
            done.set()
            for sent in sending:
                sent.result()


def dashboard_queries(prometheus: Prometheus, instance: str) -> list[str]:
    """The dashboard's, with its variables as Grafana would set them for this instance."""
    board = json.loads((DEPLOY / "grafana" / "edsd.json").read_text())
    values = {"$__rate_interval": "8s", "$model_name": ".*", "$instance": instance}
    for variable in board["templating"]["list"]:
        if variable["name"] in ("edsd", "vllm"):
            selector = re.search(r"label_values\((.*), __name__\)", variable["query"])[1]
            (name,) = prometheus.ask("label/__name__/values", **{"match[]": selector})
            values[f"${{{variable['name']}}}"] = re.search(variable["regex"].strip("/"), name)[1]
    queries = []
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for variable, value in values.items():
                query = query.replace(variable, value)
            queries.append(query)
    return queries


def wait(done: Callable[[], bool], why: Callable[[], str]) -> None:
    """Asks once a second until it is so."""
    begun = time.monotonic()
    while not done():
        assert time.monotonic() - begun < PATIENCE, why()
        time.sleep(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
