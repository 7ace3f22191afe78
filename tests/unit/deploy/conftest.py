"""What the overlays render to, and the pods in it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEPLOY = Path(__file__).parents[3] / "deploy"
Objects = list[dict[str, Any]]


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
