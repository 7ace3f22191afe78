"""The dashboard that is committed: made by its script, of metrics that exist, in PromQL that Prometheus reads."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "grafana"
BOARD = json.loads((FOLDER / "edsd.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {variable["name"]: variable for variable in BOARD["templating"]["list"]}


def test_the_script_makes_what_is_committed(tmp_path):
    subprocess.run([sys.executable, FOLDER / "dashboards.py", tmp_path / "edsd.json"], check=True)
    assert (tmp_path / "edsd.json").read_bytes() == (FOLDER / "edsd.json").read_bytes()


def test_queries_name_metrics_that_exist(samples):
    text = "\n".join(QUERIES)
    assert {f"{prefix}:{name}" for prefix, name in re.findall(r"\$\{(edsd|vllm)\}(\w+)", text)} <= samples
    rules = (ROOT / "deploy" / "prometheus" / "edsd-rules.yaml").read_text()
    assert all(f"record: {name}\n" in rules for name in re.findall(r"\bmodel:\w+:\w+", text))
    # Nothing is spelled in one way only.
    assert not re.search(r"\b(edsd|vllm)[:_]\w*\{", text)


@pytest.mark.parametrize("edsd, vllm", [("edsd:", "vllm:"), ("edsd_", "vllm_"), ("edsd:", "ray_vllm_")])
def test_prometheus_reads_every_query(promtool, tmp_path, edsd, vllm):
    values = {"${edsd}": edsd, "${vllm}": vllm, "$__rate_interval": "1m", "$model_name": "m", "$instance": ".*"}
    rules = []
    for number, query in enumerate(QUERIES):
        for variable, value in values.items():
            query = query.replace(variable, value)
        assert "$" not in query
        rules.append({"record": f"query:{number}", "expr": query})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(QUERIES)} rules found" in promtool("check", "rules", tmp_path / "rules.yaml")


@pytest.mark.parametrize(
    "name, prefix",
    [
        ("vllm:num_requests_running", "vllm:"),
        ("vllm_num_requests_running", "vllm_"),
        ("ray_vllm_num_requests_running", "ray_vllm_"),
        ("edsd:heartbeat_timestamp_seconds", "edsd:"),
        ("edsd_heartbeat_timestamp_seconds", "edsd_"),
    ],
)
def test_a_spelling_is_found(name, prefix):
    variable = VARIABLES["vllm" if "vllm" in name else "edsd"]
    matcher = re.search(r'__name__=~"(.*)"\}', variable["query"])[1]
    assert re.fullmatch(matcher, name)
    assert re.search(variable["regex"].strip("/"), name)[1] == prefix


def test_panels_explain_themselves_and_follow_the_variables():
    assert {"datasource", "model_name", "instance", "edsd", "vllm"} == set(VARIABLES)
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in PANELS:
        assert panel["description"] and panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert all("$model_name" in target["expr"] for target in panel["targets"]), panel["title"]
