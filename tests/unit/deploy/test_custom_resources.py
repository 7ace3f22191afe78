"""Objects of operators: kubernetes-validate has no schemas of them, so here is what they must be, key by key."""

import re
import subprocess

import pytest
import yaml

import vllm_edsd

QUERY = re.compile(r'sum\((?P<metric>\w+:\w+)\{namespace="(?P<namespace>[\w-]+)",service="(?P<service>[\w-]+)"\}\)')


def one(objects, kind):
    (found,) = [thing for thing in objects if thing["kind"] == kind]
    return found


def test_service_monitor(overlay):
    if not any(thing["kind"] == "ServiceMonitor" for thing in overlay):
        assert not any("coreos" in thing["apiVersion"] or "keda" in thing["apiVersion"] for thing in overlay)
        return
    monitor, service = one(overlay, "ServiceMonitor"), one(overlay, "Service")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout"}
    assert (endpoint["port"], endpoint["path"]) in {(port["name"], "/metrics") for port in service["spec"]["ports"]}
    assert int(endpoint["scrapeTimeout"].removesuffix("s")) < int(endpoint["interval"].removesuffix("s"))


def test_scaled_object(render, samples):
    objects = render("multi-gpu")
    scaled, deployment = one(objects, "ScaledObject"), one(objects, "Deployment")
    spec = scaled["spec"]
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    assert set(spec) == {
        *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "fallback", "advanced", "triggers")
    }
    target = {"apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert spec["scaleTargetRef"] == target
    # Two owners of one number would fight.
    assert "replicas" not in deployment["spec"]
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    assert one(objects, "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert set(spec["fallback"]) == {"failureThreshold", "replicas", "behavior"}
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] > behavior["scaleUp"]["stabilizationWindowSeconds"]
    asked = set()
    for trigger in spec["triggers"]:
        assert set(trigger) == {"type", "name", "metadata"} and trigger["type"] == "prometheus"
        assert set(trigger["metadata"]) == {"serverAddress", "query", "threshold"}
        assert float(trigger["metadata"]["threshold"]) > 0
        query = QUERY.fullmatch(trigger["metadata"]["query"])
        assert query["namespace"] == deployment["metadata"]["namespace"]
        assert query["service"] == one(objects, "Service")["metadata"]["name"]
        asked.add(query["metric"])
    assert asked == {"vllm:num_requests_waiting", "vllm:num_requests_running"} <= samples


def test_prometheus_rule(render, deploy):
    """What is in the rules is looked at where they are written: tests/unit/deploy/test_prometheus.py."""
    rule = one(render("single-gpu"), "PrometheusRule")
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert rule["spec"] == yaml.safe_load((deploy / "prometheus" / "edsd-rules.yaml").read_text())


def test_what_the_cluster_must_have_is_told(render, deploy):
    objects = render("multi-gpu")
    (release,) = {one(objects, kind)["metadata"]["labels"]["release"] for kind in ("ServiceMonitor", "PrometheusRule")}
    ingress = [source for rule in one(objects, "NetworkPolicy")["spec"]["ingress"] for source in rule["from"]]
    (scraper,) = [source for source in ingress if set(source) == {"namespaceSelector", "podSelector"}]
    (namespace,) = scraper["namespaceSelector"]["matchLabels"].values()
    ((label, value),) = scraper["podSelector"]["matchLabels"].items()
    (dashboard,) = [thing for thing in objects if "grafana_dashboard" in thing["metadata"].get("labels", {})]
    (address,) = {trigger["metadata"]["serverAddress"] for trigger in one(objects, "ScaledObject")["spec"]["triggers"]}
    assert address.endswith(f".{namespace}.svc:9090")
    told = (deploy.parent / "docs" / "operations" / "deploy.md").read_text()
    assert f"`release: {release}`" in told
    assert f"`{namespace}`, labelled `{label}: {value}`" in told
    assert f"in `{dashboard['metadata']['namespace']}`, labelled `grafana_dashboard: " in told
    assert f"`{address}`" in told


def test_ray_cluster(render, deploy):
    cluster = one(render("kuberay"), "RayCluster")
    spec = cluster["spec"]
    assert cluster["apiVersion"] == "ray.io/v1"
    assert cluster["metadata"]["annotations"] == {"ray.io/overwrite-container-cmd": "true"}
    assert set(spec) == {"rayVersion", "upgradeStrategy", "headGroupSpec", "workerGroupSpecs"}
    assert spec["upgradeStrategy"] == {"type": "Recreate"}
    assert f'"ray[default]=={spec["rayVersion"]}"' in (deploy / "docker" / "Dockerfile").read_text()
    head = spec["headGroupSpec"]
    assert set(head) == {"rayStartParams", "headService", "template"}
    assert head["headService"] == {"spec": {"clusterIP": "None", "publishNotReadyAddresses": True}}
    (group,) = spec["workerGroupSpecs"]
    assert set(group) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    (server,), (worker,) = head["template"]["spec"]["containers"], group["template"]["spec"]["containers"]
    assert server["image"] == worker["image"]
    (volumes,) = {str(part["template"]["spec"]["volumes"]) for part in (head, group)}
    assert "edsd-models" in volumes
    assert one(render("kuberay"), "PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_head_starts_ray_without_waiting_and_then_serves(render, tmp_path):
    """Runs the head's script with commands that write down how they were called."""
    (server,) = one(render("kuberay"), "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    for name in ("ray", "vllm"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    generated = 'ray start --head --block --dashboard-host=0.0.0.0 --resources=\'"{\\"a\\":1}"\' '
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MODEL": "m", "KUBERAY_GEN_RAY_START_CMD": generated}
    script = server["args"][0].replace("ulimit -n 65536", "ulimit -n $(ulimit -Hn)")
    done = subprocess.run([*server["command"], script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ray, serve = done.stdout.splitlines()
    assert ray.startswith("ray start --head ") and "--block" not in ray
    assert serve.startswith("vllm serve m ") and "--distributed-executor-backend ray" in serve


def test_cluster_file(deploy):
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray is not installed")
    cluster = yaml.safe_load((deploy / "ray" / "cluster.yaml").read_text())
    util.validate_config(cluster)
    assert cluster["docker"]["image"].endswith(f"-ray:{vllm_edsd.__version__}")
    with pytest.raises(Exception, match="worker_ip"):
        util.validate_config(cluster | {"worker_ip": []})
