import importlib.metadata
import json

import pytest
import typer
from typer.testing import CliRunner

from vllm_edsd import compat, diagnosis
from vllm_edsd.cli.doctor import doctor
from vllm_edsd.engine import cpu, hooks, serve


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(doctor)

    def invoke(*arguments: str):
        return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})

    return invoke


def found(result) -> dict[str, dict]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def test_healthy_machine(run, make_target, make_drafter):
    result = run("--json", "--target", str(make_target()), "--drafter", str(make_drafter()))
    assert result.exit_code == 0, result.output
    checks = found(result)
    assert json.loads(result.stdout)["ok"] is True
    assert set(next(iter(checks.values()))) == {"name", "status", "detail", "remedy"}
    expected = {"versions", "supported range", "plugin", "command", "backend", "runner", "preloaded libraries"}
    assert expected | {"target", "drafter"} <= set(checks)
    assert all(word in checks["versions"]["detail"] for word in ("python", "torch", "vllm", "transformers", "triton"))


def test_table_shows_every_check(run):
    result = run()
    assert result.exit_code == 0
    assert all(word in result.stdout for word in ("supported range", "EngineArgs.add_cli_args", "backend", "what to do"))


def test_misfit_fails_with_a_remedy(run, make_target, make_drafter):
    result = run("--json", "--target", str(make_target()), "--drafter", str(make_drafter(vocab_size=300)))
    assert result.exit_code == 1
    check = found(result)["drafter"]
    assert check["status"] == "fail" and "vocab_size 300" in check["detail"] and "vllm-edsd train" in check["remedy"]
    assert json.loads(result.stdout)["ok"] is False


def test_target_without_auxiliary_hidden_states_fails(run, make_target):
    result = run("--json", "--target", str(make_target(architectures=["GPT2LMHeadModel"])))
    assert result.exit_code == 1 and "--model-impl transformers" in found(result)["target"]["remedy"]


def test_unreadable_target_fails(run, tmp_path):
    result = run("--json", "--target", str(tmp_path / "absent"))
    assert result.exit_code == 1 and found(result)["target"]["status"] == "fail"


def test_unsupported_vllm_fails_before_anything_of_it_is_imported(run, monkeypatch):
    monkeypatch.setattr(compat, "vllm_version", lambda: None)
    result = run("--json")
    assert result.exit_code == 1
    assert set(found(result)) == {"versions", "supported range", "bundled drafters"}


def test_changed_hook_fails(run, monkeypatch):
    monkeypatch.setattr(hooks, "SERVE", (hooks.Hook("vllm.engine.arg_utils", "EngineArgs.gone", ("parser",)),))
    check = found(run("--json"))["hook EngineArgs.gone"]
    assert check["status"] == "fail" and "not found" in check["detail"] and "0.32" in check["remedy"]


def test_command_without_package_metadata_warns(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.32.0")
    assert diagnosis.command().status == "ok"

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert diagnosis.command().status == "warn"


def test_plugin_left_out_by_vllm_plugins_fails():
    assert diagnosis.plugin({}).status == "ok"
    assert diagnosis.plugin({"VLLM_PLUGINS": "other,edsd"}).status == "ok"
    assert diagnosis.plugin({"VLLM_PLUGINS": "other"}).status == "fail"


def test_missing_libraries_warn_on_cpu(monkeypatch):
    monkeypatch.setattr(cpu, "tcmalloc", lambda: None)
    monkeypatch.setattr(cpu, "iomp", lambda: None)
    monkeypatch.setattr(serve, "is_cpu", lambda: True)
    check = diagnosis.preload({})
    assert check.status == "warn" and "intel-openmp" in check.remedy and "MALLOC_TRIM_THRESHOLD_" in check.detail
    assert diagnosis.preload({"LD_PRELOAD": "/x/libjemalloc.so:/x/libgomp.so"}).status == "ok"


def test_second_runner_on_cpu_warns(monkeypatch):
    monkeypatch.setattr(serve, "is_cpu", lambda: True)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert diagnosis.runner().status == "warn"
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    assert diagnosis.runner() == diagnosis.Check("runner", "ok", "V1 (VLLM_USE_V2_MODEL_RUNNER=0)")
