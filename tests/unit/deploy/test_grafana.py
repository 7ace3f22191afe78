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
# What people look at first, by its shape.
FIRST = {
    ("Acceptance length", "stat"),
    ("Acceptance length", "timeseries"),
    ("Speed-up estimate", "stat"),
    ("Speed-up estimate", "timeseries"),
    ("Acceptance by position", "heatmap"),
    ("Draft length", "timeseries"),
    ("Verification saved", "timeseries"),
    ("Guard", "state-timeline"),
    ("Time to first token", "timeseries"),
    ("Time between outputs", "timeseries"),
    ("Time of a request", "timeseries"),
    ("Drafted without the model", "timeseries"),
}


def selector(variable):
    """The series that a variable takes a label's values from."""
    return re.fullmatch(r"label_values\((.*), \w+\)", VARIABLES[variable]["query"])[1]


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


# Through Ray's agent come vLLM's figures alone: then Grafana finds no prefix of ours.
@pytest.mark.parametrize("edsd, vllm", [("edsd:", "vllm:"), ("edsd_", "vllm_"), ("edsd:", "ray_vllm_"), ("", "ray_vllm_")])
def test_prometheus_reads_every_query(promtool, tmp_path, edsd, vllm):
    queries = QUERIES + [selector(variable) for variable in ("model_name", "instance")]
    values = {"${edsd}": edsd, "${vllm}": vllm, "$__rate_interval": "1m", "$model_name": "m", "$instance": ".*"}
    rules = []
    for number, query in enumerate(queries):
        for variable, value in values.items():
            query = query.replace(variable, value)
        assert "$" not in query
        rules.append({"record": f"query:{number}", "expr": query})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", tmp_path / "rules.yaml")


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


@pytest.mark.parametrize("variable", ["model_name", "instance"])
@pytest.mark.parametrize(
    "edsd, vllm, name",
    [
        ("edsd:", "vllm:", "edsd:heartbeat_timestamp_seconds"),
        ("edsd_", "vllm_", "edsd_heartbeat_timestamp_seconds"),
        ("", "ray_vllm_", "ray_vllm_num_requests_running"),
    ],
)
def test_models_and_instances_are_found_by_ours_or_vllms(variable, edsd, vllm, name):
    matcher = re.fullmatch(r'\{__name__=~"(.*)"\}', selector(variable))[1]
    assert re.fullmatch(matcher.replace("${edsd}", edsd).replace("${vllm}", vllm), name)


def test_the_panels_to_look_at_first_are_there():
    assert {(panel["title"], panel["type"]) for panel in PANELS} >= FIRST


def test_panels_explain_themselves_and_follow_the_variables():
    assert {"datasource", "model_name", "instance", "edsd", "vllm"} == set(VARIABLES)
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    for panel in PANELS:
        assert panel["description"] and panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert all("$model_name" in target["expr"] for target in panel["targets"]), panel["title"]
