"""What the overlays render to, and the pods in it; Prometheus's own tool, and every sample name that a server exports."""

import ast
import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_edsd.observability.catalog import METRICS

DEPLOY = Path(__file__).parents[3] / "deploy"
Objects = list[dict[str, Any]]
PARTS = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


@pytest.fixture(scope="session")
def deploy() -> Path:
    return DEPLOY


@pytest.fixture(params=sorted(path.name for path in (DEPLOY / "kubernetes" / "overlays").iterdir()))
def overlay(request, kustomize) -> Objects:
    """The objects of one overlay; a test that takes it runs for every one."""
    return kustomize(DEPLOY / "kubernetes" / "overlays" / request.param)


@pytest.fixture(scope="session")
def render(kustomize) -> Callable[[str], Objects]:
    """The objects of an overlay, by its name."""
    return lambda name: kustomize(DEPLOY / "kubernetes" / "overlays" / name)


@pytest.fixture(scope="session")
def pods() -> Callable[[Objects], Objects]:
    """The pods that rendered objects ask for, with the labels and the namespace that they will have."""

    def find(objects: Objects) -> Iterator[dict[str, Any]]:
        for one in objects:
            labels: dict[str, dict[str, str]] = {}
            templates = {}
            if one["kind"] == "Deployment":
                templates = {"server": one["spec"]["template"]}
            elif one["kind"] == "RayCluster":
                (group,) = one["spec"]["workerGroupSpecs"]
                templates = {"head": one["spec"]["headGroupSpec"]["template"], "worker": group["template"]}
                # KubeRay adds them.
                labels = {role: {"ray.io/cluster": one["metadata"]["name"], "ray.io/node-type": role} for role in templates}
            for role, template in templates.items():
                metadata = {
                    "name": role,
                    "namespace": one["metadata"]["namespace"],
                    "labels": template.get("metadata", {}).get("labels", {}) | labels.get(role, {}),
                }
                yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}

    return lambda objects: list(find(objects))


@pytest.fixture(scope="session")
def promtool() -> Callable[..., str]:
    """Runs promtool and returns what it said; a failure of its is one of the test."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing: `make tools` as root, or your system's package of Prometheus")

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def samples() -> set[str]:
    """Ours from the catalogue, vLLM's from the source of its loggers, `vllm:` or `edsd:` first."""
    (place,) = importlib.util.find_spec("vllm").submodule_search_locations
    names = {sample for metric in METRICS for sample in metric.samples}
    for call in ast.walk(ast.parse((Path(place) / "v1" / "metrics" / "loggers.py").read_text())):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr.endswith("_cls"):
            for keyword in call.keywords:
                if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                    kind = call.func.attr.strip("_").removesuffix("_cls")
                    names |= {keyword.value.value.removesuffix("_total") + part for part in PARTS[kind]}
    return names
