"""What deploy/kubernetes/generate.py writes for kustomize."""

import importlib.util
import json
import shutil

import pytest
import yaml


@pytest.fixture(scope="module")
def generate(deploy):
    spec = importlib.util.spec_from_file_location("generate", deploy / "kubernetes" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_written_files_are_in_step(generate, deploy):
    for path, text in generate.files(deploy).items():
        assert path.read_text() == text, f"{path} is out of step; run: python deploy/kubernetes/generate.py"


def test_a_rule_and_a_dashboard_reach_the_cluster(generate, deploy, kustomize, tmp_path):
    copied = tmp_path / "deploy"
    shutil.copytree(deploy, copied)
    rules = {"groups": [{"name": "added", "rules": [{"alert": "Added", "expr": "vector(1)", "for": "5m"}]}]}
    (copied / "prometheus" / "zz-added.yaml").write_text(yaml.safe_dump(rules))
    (copied / "prometheus" / "zz-added-test.yaml").write_text("rule_files: [zz-added.yaml]\ntests: []\n")
    (copied / "grafana" / "edsd-added.json").write_text(json.dumps({"title": "$model"}))
    for path, text in generate.files(copied).items():
        path.write_text(text)
    objects = kustomize(copied / "kubernetes" / "overlays" / "single-gpu")
    (rule,) = [one for one in objects if one["kind"] == "PrometheusRule"]
    assert rule["spec"]["groups"][-1:] == rules["groups"]
    (added,) = [one for one in objects if one["metadata"]["name"] == "edsd-dashboard-added"]
    assert added["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert {name: json.loads(text) for name, text in added["data"].items()} == {"edsd-added.json": {"title": "$model"}}
