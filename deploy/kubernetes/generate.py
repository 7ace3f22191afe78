"""Wraps the Prometheus rules and the Grafana dashboards for kustomize; run it after a change of either.

    python deploy/kubernetes/generate.py

It writes deploy/prometheus/prometheusrule.yaml (one PrometheusRule with the groups of every rule file there) and
deploy/grafana/kustomization.yaml (one ConfigMap for every dashboard), which components/monitoring takes in.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

NOTE = "# Written by deploy/kubernetes/generate.py\n"
# kube-prometheus-stack takes in only what carries the name of its release.
RULE_LABELS = {"app.kubernetes.io/name": "edsd", "release": "kube-prometheus-stack"}


def prometheus_rule(folder: Path) -> dict[str, Any]:
    """A PrometheusRule with the groups of every rule file in `folder`, in the order of the files' names."""
    documents = [yaml.safe_load(path.read_text()) for path in sorted(folder.glob("*.y*ml"))]
    groups = [group for document in documents if set(document) == {"groups"} for group in document["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "edsd", "labels": RULE_LABELS},
        "spec": {"groups": groups},
    }


def dashboards(folder: Path) -> dict[str, Any]:
    """A kustomization that makes a ConfigMap, with the label that Grafana's sidecar looks for, of every dashboard."""
    kustomization: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "generatorOptions": {"disableNameSuffixHash": True, "labels": {"grafana_dashboard": "1"}},
    }
    files = sorted(path.name for path in folder.glob("*.json"))
    maps = [{"name": f"edsd-dashboard-{Path(name).stem.removeprefix('edsd-')}", "files": [name]} for name in files]
    return kustomization | ({"configMapGenerator": maps} if maps else {})


def files(deploy: Path) -> dict[Path, str]:
    """What is to be written, by path."""
    made = {
        deploy / "prometheus" / "prometheusrule.yaml": prometheus_rule(deploy / "prometheus"),
        deploy / "grafana" / "kustomization.yaml": dashboards(deploy / "grafana"),
    }
    return {path: NOTE + yaml.safe_dump(content, sort_keys=False, width=120) for path, content in made.items()}


if __name__ == "__main__":
    for path, text in files(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]).items():
        path.write_text(text)
