"""A model-free proposer asked for by name, on the way to vLLM's own arguments."""

import json
import os

import pytest
from typer.testing import CliRunner
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

import vllm_edsd
from vllm_edsd import plugin
from vllm_edsd.cli.main import app
from vllm_edsd.config import ServeConfig
from vllm_edsd.drafters import checkpoint, registry
from vllm_edsd.drafters.target import TargetShape
from vllm_edsd.engine import hooks, serve
from vllm_edsd.engine.custom_proposer import CustomProposer
from vllm_edsd.errors import UserError
from vllm_edsd.place import Place
from vllm_edsd.serving import engine_arguments

SERVED = {
    "speculative_config": {
        "method": "custom_class",
        "model": f"{CustomProposer.__module__}.{CustomProposer.__qualname__}",
        "num_speculative_tokens": 2,
    },
    "additional_config": {"edsd": {"proposer": "trigram"}},
}


@pytest.fixture
def environment(monkeypatch):
    """Changes to the environment are undone."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)


@pytest.mark.parametrize("options", [{}, {"policy": "fixed"}, {"draft_sample_method": "greedy"}], ids=str)
@pytest.mark.parametrize("obstacle", [None, "ranks disagree"])
def test_becomes_vllms_custom_class(options, obstacle):
    assert engine_arguments(ServeConfig(drafter="trigram", **options), None, Place(obstacle, obstacle)) == SERVED


def test_the_number_of_tokens_is_the_users():
    found = engine_arguments(ServeConfig(drafter="trigram", num_tokens=7), None, None)
    assert found["speculative_config"]["num_speculative_tokens"] == 7


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"policy": "evict"}, "policy 'evict'"),
        ({"draft_sample_method": "probabilistic"}, "draft_sample_method 'probabilistic'"),
        ({"verification": "block"}, "verification 'block'"),
        ({"record": "steps.jsonl"}, "record 'steps.jsonl'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_for_drafters_with_weights_is_refused(options, told):
    with pytest.raises(UserError, match=f"^{told} cannot be used: .*'trigram' is a model-free proposer; leave it out"):
        engine_arguments(ServeConfig(drafter="trigram", **options), None, None)


def test_a_broken_proposer_is_told_before_anything_starts(monkeypatch):
    broken = registry.Extensions("proposer", registry.PROPOSERS.group, registry.Proposer, {"bad": "nothing_there:Bad"})
    monkeypatch.setattr(registry, "PROPOSERS", broken)
    with pytest.raises(UserError, match="the proposer 'bad', nothing_there:Bad, cannot be loaded"):
        engine_arguments(ServeConfig(drafter="bad"), None, None)


def test_drafters_with_weights_of_the_same_name_come_first(make_drafter, monkeypatch, tmp_path):
    make_drafter("trigram")
    assert checkpoint.model_free("trigram")
    monkeypatch.chdir(tmp_path)
    assert not checkpoint.model_free("trigram")
    assert engine_arguments(ServeConfig(drafter="trigram"), None, Place())["speculative_config"]["method"] == "eagle3"


def test_an_unknown_drafter_lists_proposers_too():
    with pytest.raises(
        UserError, match=r"'trigam' is neither .*smollm2-edsd.*, nor a model-free proposer \(lookup, trigram\)"
    ):
        checkpoint.resolve("trigam")


def test_where_weights_are_needed_a_proposer_is_refused():
    with pytest.raises(UserError, match="'trigram' is a model-free proposer, and a drafter with weights is needed here"):
        checkpoint.resolve("trigram")


@pytest.fixture
def parse(make_target, environment, monkeypatch):
    """Parses a command line for a target that gives no hidden states."""
    original = getattr(EngineArgs.add_cli_args, "__wrapped__", EngineArgs.add_cli_args)
    monkeypatch.setattr(EngineArgs, "add_cli_args", staticmethod(original))
    plugin.register()
    target = str(make_target(architectures=["GPT2LMHeadModel"]))

    def run(*arguments):
        parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(prog="vllm"))
        return parser.parse_args(["--model", target, "--edsd", "trigram", *arguments])

    return run


def test_the_flag_serves_any_target(parse):
    given = parse("--edsd.num-tokens", "4", "--additional-config", json.dumps({"mine": 1}))
    taken = AsyncEngineArgs.from_cli_args(given)
    assert taken.speculative_config == {**SERVED["speculative_config"], "num_speculative_tokens": 4}
    assert taken.additional_config == {"mine": 1, **SERVED["additional_config"]}
    assert taken.worker_cls == "auto"
    assert os.environ[hooks.ACTIVE] == "1"


def test_the_flag_refuses_a_policy_in_one_line(parse, capsys):
    with pytest.raises(SystemExit) as ended:
        parse("--edsd.policy", "bandit")
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "policy 'bandit' cannot be used" in told and told.count("\n") == 1


def test_options_for_python(environment):
    assert vllm_edsd.options("trigram") == SERVED


@pytest.mark.parametrize(("value", "refused"), [("1", True), ("0", False)])
def test_runner_v2_is_refused(value, refused, environment, monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
    if not refused:
        assert vllm_edsd.options("trigram") == SERVED
        return
    with pytest.raises(UserError, match=r"V1 only, and VLLM_USE_V2_MODEL_RUNNER is 1; unset it"):
        vllm_edsd.options("trigram")


def test_a_target_without_hidden_states_is_refused_to_drafters_that_read_them(environment):
    target = TargetShape("t", 64, 256, 4, ("GPT2LMHeadModel",))
    with pytest.raises(UserError, match="no auxiliary hidden states"):
        serve.prepare(target)


def test_hooks_are_as_expected_in_the_installed_vllm():
    assert hooks.problem(hooks.CUSTOM) is None


def test_the_doctor_knows_proposers():
    result = CliRunner().invoke(app, ["doctor", "--json", "--drafter", "trigram"])
    (check,) = [check for check in json.loads(result.stdout)["checks"] if check["name"] == "drafter"]
    assert (check["status"], check["detail"]) == ("ok", "trigram, a model-free proposer")
