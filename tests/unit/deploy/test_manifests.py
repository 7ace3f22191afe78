"""Every overlay against the schemas of three Kubernetes versions, and against itself."""

import copy
import os
import re
import shlex
from pathlib import PurePosixPath

import kubernetes_validate
import pytest
import yaml
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

import vllm_edsd
from vllm_edsd.config import ServeConfig, validate
from vllm_edsd.drafters.checkpoint import bundled
from vllm_edsd.serving import ADMIN_TOKEN, from_environment, variable

VERSIONS = ("1.31", "1.34", "1.37")
# Their schemas come with their operators; test_custom_resources.py has what is asserted of them.
CUSTOM = {"PrometheusRule", "RayCluster", "ScaledObject", "ServiceMonitor"}


def matches(selector, labels):
    return selector.items() <= labels.items()


def of(objects, kind):
    return [one for one in objects if one["kind"] == kind]


def server(pods):
    """The container that serves, and its pod."""
    return next((box, pod) for pod in pods for box in pod["spec"]["containers"] if box["name"] == "server")


@pytest.mark.parametrize("version", VERSIONS)
def test_valid(overlay, version, pods):
    plain = [one for one in overlay if one["kind"] not in CUSTOM]
    assert {"Service", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"} <= {one["kind"] for one in plain}
    for one in plain + pods(overlay):
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("path", "right", "wrong"),
    [
        (("template", "spec"), "terminationGracePeriodSeconds", "terminationGracePeriod"),
        (("template", "spec", "containers", 0), "startupProbe", "startUpProbe"),
        (("template", "spec", "containers", 0, "lifecycle", "preStop", "sleep"), "seconds", "second"),
    ],
)
def test_a_misspelt_field_is_refused(render, version, path, right, wrong):
    (spoilt,) = copy.deepcopy(of(render("single-gpu"), "Deployment"))
    place = spoilt["spec"]
    for key in path:
        place = place[key]
    place[wrong] = place.pop(right)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(spoilt, version, strict=True)


def test_everything_is_in_one_namespace(overlay):
    assert {one["metadata"]["namespace"] for one in overlay} == {"edsd"}


def test_what_is_named_is_there(overlay, pods):
    def names(kind):
        return {one["metadata"]["name"] for one in of(overlay, kind)}

    for pod in pods(overlay):
        spec = pod["spec"]
        assert spec["serviceAccountName"] in names("ServiceAccount")
        for volume in spec["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in names("PersistentVolumeClaim")
        for box in spec["containers"] + spec.get("initContainers", []):
            assert {source["configMapRef"]["name"] for source in box.get("envFrom", [])} <= names("ConfigMap")
            assert {mount["name"] for mount in box["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]}
    # The hub's token is the operator's to make; the pod starts without it.
    assert not of(overlay, "Secret")
    token = next(setting for setting in server(pods(overlay))[0]["env"] if setting["name"] == "HF_TOKEN")
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True


def test_selectors_meet_the_pods(overlay, pods):
    every = pods(overlay)
    container, serving = server(every)
    labels = serving["metadata"]["labels"]
    ports = {port["name"] for port in container["ports"]}
    for service in of(overlay, "Service"):
        met = [pod for pod in every if matches(service["spec"]["selector"], pod["metadata"]["labels"])]
        assert met == [serving]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for deployment in of(overlay, "Deployment"):
        assert matches(deployment["spec"]["selector"]["matchLabels"], labels)
        (spread,) = serving["spec"]["topologySpreadConstraints"]
        assert matches(spread["labelSelector"]["matchLabels"], labels)
    (budget,) = of(overlay, "PodDisruptionBudget")
    (policy,) = of(overlay, "NetworkPolicy")
    for pod in every:
        assert matches(budget["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"])
        assert matches(policy["spec"]["podSelector"]["matchLabels"], pod["metadata"]["labels"])
    named = [port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", [])]
    assert set(named) == ports


def test_the_budget_lets_a_node_be_drained(overlay, pods):
    (budget,) = of(overlay, "PodDisruptionBudget")
    stay = budget["spec"].get("minAvailable", 0)
    assert (budget["spec"].get("maxUnavailable") == 1) != (0 < stay < len(pods(overlay)))


def test_pods_may_do_little(overlay, pods):
    for pod in pods(overlay):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        context = spec["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for box in spec["containers"] + spec.get("initContainers", []):
            assert box["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_images_are_pinned(overlay, pods):
    for pod in pods(overlay):
        for box in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            name, tag = box["image"].rsplit(":", 1)
            assert tag == vllm_edsd.__version__ if name.endswith(("edsd", "-cpu", "-ray")) else tag != "latest", box["image"]


def test_what_is_written_lies_on_volumes(overlay, pods, image_environment):
    container, pod = server(pods(overlay))
    image = "Dockerfile.cpu" if "-cpu:" in container["image"] else "Dockerfile"
    written = {path for name, path in image_environment(image).items() if name != "PATH"}
    assert {"/cache/home", "/models/huggingface", "/tmp"} <= written
    mounts = tuple(f"{mount['mountPath']}/" for mount in container["volumeMounts"] if not mount.get("readOnly"))
    assert all(f"{path}/".startswith(mounts) for path in written | {"/dev/shm"})
    memory = {volume["name"]: volume["emptyDir"].get("medium") for volume in pod["spec"]["volumes"] if "emptyDir" in volume}
    assert memory["shm"] == "Memory"


def test_ending_leaves_time_for_requests(overlay, pods):
    container, pod = server(pods(overlay))
    drain = int(re.search(r"--shutdown-timeout\s+(\d+)", " ".join(container["args"]))[1])
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    # Endpoints are gone before the server refuses; the engine has time to free its device.
    readiness = container["readinessProbe"]
    assert before >= readiness["periodSeconds"] * 2
    assert before + drain + 20 <= pod["spec"]["terminationGracePeriodSeconds"]


def test_probes_wait_for_the_model_and_forgive_load(overlay, pods):
    def patience(probe):
        return probe["periodSeconds"] * probe["failureThreshold"]

    container, _ = server(pods(overlay))
    startup, readiness, liveness = (container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
    for probe in (startup, readiness, liveness):
        assert probe["httpGet"] == {"path": "/health", "port": "http"}
    assert patience(startup) >= 1800
    assert patience(liveness) >= 3 * patience(readiness)


def test_resources(overlay, pods):
    """Memory and GPUs are what they are; ranks are as many as GPUs."""
    gpus = 0
    for pod in pods(overlay):
        for box in pod["spec"]["containers"] + pod["spec"].get("initContainers", []):
            asked, allowed = box["resources"]["requests"], box["resources"]["limits"]
            assert asked["memory"] == allowed["memory"]
            assert asked.get("nvidia.com/gpu") == allowed.get("nvidia.com/gpu")
            gpus += int(allowed.get("nvidia.com/gpu", 0))
    container, _ = server(pods(overlay))
    ranks = re.search(r"--tensor-parallel-size\s+(\d+)", " ".join(container["args"]))
    assert gpus == (int(ranks[1]) if ranks else gpus) and (gpus or "-cpu:" in container["image"])


def test_options_are_vllms_and_ours(overlay, pods, monkeypatch):
    container, _ = server(pods(overlay))
    values = {setting["name"]: setting["value"] for setting in container["env"] if "value" in setting}
    values |= {name: value for one in of(overlay, "ConfigMap") for name, value in one.get("data", {}).items()}
    ours = {name for name in values if name.startswith("EDSD_")}
    assert ours <= {variable(field) for field in ServeConfig.model_fields}
    config = validate(ServeConfig, from_environment(values), "manifest")
    assert config.drafter == "/drafters/current" or config.drafter in bundled()
    for name in [name for name in os.environ if name.startswith("EDSD_")]:
        monkeypatch.delenv(name)
    words = container["args"]
    if len(words) == 1:  # a script that ends in it
        words = shlex.split(words[0].replace("\\\n", "").split("exec vllm serve")[1])
    assert words[0] in ("$(MODEL)", "$MODEL") and values["MODEL"]
    given = make_arg_parser(FlexibleArgumentParser()).parse_args([values["MODEL"], *words[1:]])
    assert (given.port, given.shutdown_timeout) == (container["ports"][0]["containerPort"], 60)


@pytest.mark.parametrize("below", ["base", "overlays/cpu-trial"])
def test_components_fit_the_base(below, deploy, kustomize, pods, tmp_path):
    """Those that no overlay uses, all at once: a drafter from a volume, JSON logs, another drafter without a restart."""
    folder = tmp_path / "overlay"
    folder.mkdir()
    kubernetes = "../" * len(folder.resolve().parts[1:]) + str((deploy / "kubernetes").resolve())[1:]
    components = [f"{kubernetes}/components/{name}" for name in ("drafter-volume", "json-logs", "admin")]
    kustomization = {"namespace": "edsd", "resources": [f"{kubernetes}/{below}"], "components": components}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    objects = kustomize(folder)
    (pod,) = pods(objects)
    for version in VERSIONS:
        kubernetes_validate.validate(pod, version, strict=True)
    (container,) = pod["spec"]["containers"]
    assert {"name": "drafters", "mountPath": "/drafters", "readOnly": True} in container["volumeMounts"]
    environment = {setting["name"]: setting for setting in container["env"]}
    assert environment[ADMIN_TOKEN]["valueFrom"] == {"secretKeyRef": {"name": "edsd-admin-token", "key": "token"}}
    # The ConfigMap's name carries a hash of the content, and the volume follows it.
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    name = volumes["logging"]["configMap"]["name"]
    (logging,) = [one for one in of(objects, "ConfigMap") if one["metadata"]["name"] == name]
    path = PurePosixPath(environment["VLLM_LOGGING_CONFIG_PATH"]["value"])
    assert {"name": "logging", "mountPath": str(path.parent), "readOnly": True} in container["volumeMounts"]
    assert logging["data"] == {path.name: (deploy / "logging" / "json.json").read_text()}
