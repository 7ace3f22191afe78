"""The CPU trial's container, run as its manifest says: its user, no capability, a read-only root, its volumes, its command.

No cluster is needed: a mount and a process namespace stand in for the container, this machine's environment for the image.
"""

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
# Roomy: it has the pod's cores, whatever pytest gave this process, and the pod's seconds to end.
pytestmark = [pytest.mark.e2e, pytest.mark.roomy]

# $1 is where layers and volumes lie, $2 the checkout, $3 the target; what follows is the command.
POD = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1/layers"
mkdir "$1/layers/upper" "$1/layers/work" "$1/layers/root"
root=$1/layers/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/layers/upper,workdir=$1/layers/work" "$root"
test ! -d "$root/root" || chmod 755 "$root/root"
mkdir -p "$root/models" "$root/cache"
mount -o remount,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
for volume in models cache tmp; do mount --bind "$1/$volume" "$root/$volume"; done
mkdir -p "$root/models/smollm2" "$root$2"
mount --bind "$3" "$root/models/smollm2"
mount --bind "$2" "$root$2"
mount -o remount,bind,ro "$root$2"
shift 3
bare="--clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
exec chroot "$root" setpriv --reuid 10001 --regid 10001 $bare "$@"
"""


@pytest.fixture
def place(tmp_path):
    """The folder of a pod's volumes, which its user owns."""
    (tmp_path / "layers").mkdir()
    for volume in ("models", "cache", "tmp"):
        (tmp_path / volume).mkdir()
        os.chown(tmp_path / volume, 10001, 10001)
    return tmp_path


@pytest.fixture
def run(place, target):
    """Starts a command in the pod, with these variables and no others."""

    def start(command, environment, **options):
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", POD]
        variables = [f"{name}={value}" for name, value in environment.items()]
        arguments = ["pod", place, ROOT, target.resolve(), "env", "-i", *variables, *command]
        return subprocess.Popen([*enter, *map(str, arguments)], cwd="/", **options)

    if os.geteuid():
        pytest.skip("only root may mount")
    try:
        started = start(["true"], {"PATH": os.defpath}, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    problem = started.communicate()[1]
    if started.returncode:
        pytest.skip(f"this machine allows no mount namespace: {problem}")
    return start


@pytest.fixture
def container(kustomize, image_environment):
    """The command, the environment and the seconds to end of the server in the CPU trial."""
    objects = kustomize(ROOT / "deploy" / "kubernetes" / "overlays" / "cpu-trial")
    (pod,) = [one["spec"]["template"]["spec"] for one in objects if one["kind"] == "Deployment"]
    (settings,) = [one["data"] for one in objects if one["kind"] == "ConfigMap"]
    (server,) = pod["containers"]
    environment = image_environment("Dockerfile.cpu") | settings
    environment |= {"OMP_NUM_THREADS": server["resources"]["limits"]["cpu"]}
    environment |= {"PATH": f"{sysconfig.get_path('scripts')}:{os.defpath}", "PYTHONPATH": str(ROOT)}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = [{"$(MODEL)": settings["MODEL"], "8000": port}.get(word, word) for word in server["args"]]
    left = pod["terminationGracePeriodSeconds"] - server["lifecycle"]["preStop"]["sleep"]["seconds"]
    return [*server["command"], *words], environment, f"http://127.0.0.1:{port}", left


def fetch(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
        return answer.status, answer.read().decode()


def ask(url, prompt, tokens, **options):
    body = {"model": "smollm2", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0}
    return json.loads(fetch(f"{url}/v1/chat/completions", body | options)[1])


def wait_ready(process, url, log):
    for _ in range(300):
        assert process.poll() is None, log.read_text()[-5000:]
        try:
            fetch(f"{url}/health")
            return
        except OSError:
            time.sleep(1)
    pytest.fail(log.read_text()[-5000:])


def test_the_root_is_read_only_and_the_user_is_nobody(run, container):
    command = ["sh", "-c", "id -u; grep CapEff /proc/self/status; touch /tmp/mine /cache/mine /models/mine; touch /mine"]
    done = run(command, container[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told, refused = done.communicate()
    assert told.split() == ["10001", "CapEff:", "0" * 16]
    assert refused.count("Read-only file system") == 1 and refused.count("\n") == 1, refused


def test_the_server_serves_and_ends_as_kubernetes_would_have_it(run, container, tmp_path):
    command, environment, url, left = container
    log = tmp_path / "log"
    with log.open("wb") as output, concurrent.futures.ThreadPoolExecutor() as pool:
        outer = run(command, environment, stdout=output, stderr=output)
        try:
            wait_ready(outer, url, log)
            answer = ask(url, "What is the capital of France?", 20)
            assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
            drafts = re.search(r"^vllm:spec_decode_num_drafts_total\{.*\} (\S+)$", fetch(f"{url}/metrics")[1], re.MULTILINE)
            assert float(drafts[1]) > 0

            story = pool.submit(ask, url, "Write a long story.", 300, ignore_eos=True)
            while not re.search(r"^vllm:num_requests_running\{.*\} 1\.0$", fetch(f"{url}/metrics")[1], re.MULTILINE):
                assert not story.done()
            (server,) = psutil.Process(outer.pid).children()
            begun = time.monotonic()
            server.send_signal(signal.SIGTERM)
            time.sleep(1)
            # Alive while it drains, so no probe kills it; closed to new requests, which is why preStop comes first.
            assert fetch(f"{url}/health")[0] == 200
            with pytest.raises(urllib.error.HTTPError):
                ask(url, "Are you there?", 5)
            assert story.result()["usage"]["completion_tokens"] == 300
            assert outer.wait(timeout=left) == 0
            assert time.monotonic() - begun < left
        finally:
            outer.kill()
            outer.wait()
