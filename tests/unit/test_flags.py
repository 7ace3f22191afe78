import argparse
import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_edsd import flags
from vllm_edsd.experts import plan as plans
from vllm_edsd.fingerprint import model_fingerprint
from vllm_edsd.place import Place
from vllm_edsd.policy.registry import names


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("EDSD_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def parse(make_target):
    """Parses with vLLM's own parser class, as a subcommand; returns the namespace and what `prepare` was given."""
    llama = make_target()

    def run(*arguments: str, obstacle: str | None = None, target: Path = llama) -> tuple[argparse.Namespace, list]:
        prepared: list = []
        top = FlexibleArgumentParser(prog="vllm")
        serve = top.add_subparsers(dest="subparser").add_parser("serve")
        serve.add_argument("model_tag", nargs="?")
        serve.add_argument("--model", default="none")
        serve.add_argument("--model-impl", default="auto")
        serve.add_argument("--config")
        serve.add_argument("--speculative-config", type=json.loads, default=None)
        serve.add_argument("--spec-tokens", type=int, default=None)
        serve.add_argument("--worker-cls", default="auto")
        serve.add_argument("--middleware", action="append", default=[])
        serve.add_argument("--additional-config", type=json.loads, default={})
        serve.add_argument("--hf-overrides", type=json.loads, default={})

        def find_place(given):
            assert given["model_tag"] == str(target)
            return Place(obstacle, obstacle)

        flags.extend(serve, lambda target, **used: prepared.append(target), find_place)
        return top.parse_args(["serve", str(target), *arguments]), prepared

    return run


MOE = {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts_per_tok": 4}


@pytest.fixture
def moe(make_target) -> Path:
    return make_target("moe", **MOE)


@pytest.fixture
def plan(moe, tmp_path) -> Path:
    found = plans.Plan(
        model=model_fingerprint(moe), mode="prefill", num_hidden_layers=4, top_k=4, experts=dict.fromkeys(range(4), 2)
    )
    plans.write(found, None, tmp_path / "plan")
    return tmp_path / "plan"


def refusal(parse, capsys, *arguments: str, **options: Any) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(*arguments, **options)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("vllm serve: error: ") and told.count("\n") == 1, told
    return told


def test_without_flag_nothing_is_left(parse):
    namespace, prepared = parse()
    assert namespace.speculative_config is None
    assert (namespace.worker_cls, namespace.additional_config) == ("auto", {})
    assert not hasattr(namespace, "edsd")
    assert prepared == []


@pytest.mark.parametrize("order", [0, 1], ids=["name-first", "option-first"])
def test_name_and_options_merge_in_any_order(order, parse, make_drafter):
    drafter = make_drafter()
    parts = [["--edsd", str(drafter)], ["--edsd.num-tokens", "3"]]
    namespace, prepared = parse(*parts[order], *parts[1 - order])
    assert namespace.speculative_config == {
        "method": "eagle3",
        "model": str(drafter),
        "num_speculative_tokens": 3,
        "draft_sample_method": "greedy",
        "use_local_argmax_reduction": True,
        "disable_padded_drafter_batch": True,
    }
    assert not hasattr(namespace, "edsd")
    assert prepared[0].hidden_size == 64


@pytest.mark.parametrize("spelling", ["--edsd.num_tokens=4", "--edsd.num-tokens=4"])
def test_dashes_and_underscores_are_the_same(spelling, parse, make_drafter):
    assert parse(f"--edsd={make_drafter()}", spelling)[0].speculative_config["num_speculative_tokens"] == 4


def test_json_object_sets_everything(parse, make_drafter):
    given = json.dumps({"drafter": str(make_drafter()), "draft-sample-method": "probabilistic"})
    found = parse("--edsd", given)[0].speculative_config
    assert found["draft_sample_method"] == "probabilistic"
    # vLLM refuses the two together: sampling needs the logits that the reduction does not make.
    assert found["use_local_argmax_reduction"] is False


def test_vllm_config_file_works(parse, make_drafter, tmp_path: Path):
    (tmp_path / "serve.yaml").write_text(json.dumps({"edsd": {"drafter": str(make_drafter()), "num_tokens": 6}}))
    assert parse("--config", str(tmp_path / "serve.yaml"))[0].speculative_config["num_speculative_tokens"] == 6


def test_environment_alone_turns_it_on(parse, make_drafter, monkeypatch):
    monkeypatch.setenv("EDSD_DRAFTER", str(make_drafter()))
    monkeypatch.setenv("EDSD_NUM_TOKENS", "2")
    assert parse()[0].speculative_config["num_speculative_tokens"] == 2


def test_flag_wins_over_environment(parse, make_drafter, monkeypatch):
    monkeypatch.setenv("EDSD_DRAFTER", "nothing-there")
    monkeypatch.setenv("EDSD_NUM_TOKENS", "2")
    drafter = make_drafter()
    found = parse("--edsd", str(drafter), "--edsd.num-tokens", "4")[0].speculative_config
    assert (found["model"], found["num_speculative_tokens"]) == (str(drafter), 4)


def test_options_in_the_environment_without_a_drafter_change_nothing(parse, monkeypatch):
    monkeypatch.setenv("EDSD_NUM_TOKENS", "2")
    # What Kubernetes sets in every pod beside a service that is called edsd.
    monkeypatch.setenv("EDSD_SERVICE_HOST", "10.0.0.1")
    assert parse()[0].speculative_config is None


def test_defaults_do_not_depend_on_the_environment(make_drafter, monkeypatch):
    monkeypatch.setenv("EDSD_DRAFTER", str(make_drafter()))
    parser = FlexibleArgumentParser()
    parser.add_argument("--speculative-config", default=None)
    flags.extend(parser, lambda target: None, lambda given: None)
    assert parser.parse_args([]).speculative_config is None


def test_transformers_backend_is_not_judged_by_the_native_class(parse, make_drafter):
    (judged,) = parse("--edsd", str(make_drafter()), "--model-impl", "transformers")[1]
    assert judged.architectures == ()


def test_unknown_option_lists_the_known(parse, make_drafter, capsys):
    told = refusal(parse, capsys, "--edsd", str(make_drafter()), "--edsd.tokens", "3")
    known = "--edsd, --edsd.policy, --edsd.num-tokens, --edsd.draft-sample-method"
    assert f"unknown key --edsd.tokens (value 3); known: {known}" in told


def test_out_of_range_names_the_flag(parse, make_drafter, capsys):
    told = refusal(parse, capsys, "--edsd", str(make_drafter()), "--edsd.num-tokens", "0")
    assert "--edsd.num-tokens (draft tokens per step (K), at most; " in told and " cannot be 0; give 1 to 128" in told
    assert "error: --edsd.num-tokens (" in told


def test_out_of_range_names_the_variable(parse, make_drafter, monkeypatch, capsys):
    monkeypatch.setenv("EDSD_NUM_TOKENS", "0")
    told = refusal(parse, capsys, "--edsd", str(make_drafter()))
    assert "EDSD_NUM_TOKENS (draft tokens per step (K), at most; " in told and " cannot be '0'; give 1 to 128" in told


def test_by_default_the_length_adapts(parse, make_drafter):
    namespace, _ = parse("--edsd", str(make_drafter()))
    assert namespace.speculative_config["num_speculative_tokens"] == 8
    assert namespace.worker_cls == "vllm_edsd.engine.worker.AdaptiveCPUWorker"
    assert namespace.additional_config["edsd"]["policy"] == "evict"


def test_a_policy_by_flag_and_by_environment(parse, make_drafter, monkeypatch):
    drafter = str(make_drafter())
    monkeypatch.setenv("EDSD_POLICY", "entropy")
    assert parse("--edsd", drafter)[0].additional_config["edsd"]["policy"] == "entropy"
    assert parse("--edsd", drafter, "--edsd.policy", "bandit")[0].additional_config["edsd"]["policy"] == "bandit"


def test_the_users_additional_configuration_is_kept(parse, make_drafter):
    given = {"mine": {"a": 1}, "other": 2}
    found = parse("--edsd", str(make_drafter()), "--additional-config", json.dumps(given))[0].additional_config
    assert found.pop("edsd")["policy"] == "evict"
    assert found == given


@pytest.mark.parametrize("options", [[], ["--edsd.policy", "fixed"]], ids=["by default", "when asked to"])
def test_where_the_length_cannot_adapt_it_is_fixed(options, parse, make_drafter):
    given = ["--worker-cls", "mine.Worker", "--additional-config", '{"mine": 1}']
    namespace, prepared = parse("--edsd", str(make_drafter()), *options, *given, obstacle="ranks disagree")
    assert namespace.speculative_config["num_speculative_tokens"] == 2
    assert "disable_padded_drafter_batch" not in namespace.speculative_config
    assert (namespace.worker_cls, namespace.additional_config) == ("mine.Worker", {"mine": 1})
    assert len(prepared) == 1


def test_a_policy_that_cannot_be_used_is_refused(parse, make_drafter, capsys):
    told = refusal(parse, capsys, "--edsd", str(make_drafter()), "--edsd.policy", "bandit", obstacle="ranks disagree")
    assert "policy 'bandit' cannot be used: ranks disagree; give policy fixed" in told


def test_unknown_policy_names_the_flag_and_lists_the_known(parse, make_drafter, capsys):
    told = refusal(parse, capsys, "--edsd", str(make_drafter()), "--edsd.policy", "warp")
    assert "--edsd.policy (" in told and " cannot be 'warp': " in told
    assert f"known: {', '.join(names())}" in told


def test_unknown_policy_names_the_variable_and_lists_the_known(parse, make_drafter, monkeypatch, capsys):
    monkeypatch.setenv("EDSD_POLICY", "warp")
    told = refusal(parse, capsys, "--edsd", str(make_drafter()))
    assert "EDSD_POLICY (" in told and " cannot be 'warp': " in told
    assert f"known: {', '.join(names())}" in told


RIVALS = [["--speculative-config", '{"method": "ngram"}'], ["--spec-tokens", "2"]]


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival[0])
def test_rival_configuration_is_refused(rival, parse, make_drafter, capsys):
    told = refusal(parse, capsys, "--edsd", str(make_drafter()), *rival)
    assert f"--edsd and {rival[0]}" in told and "give one of them" in told


def test_option_without_drafter_says_what_to_add(parse, capsys):
    assert "--edsd.num-tokens needs a drafter; add --edsd DRAFTER or set EDSD_DRAFTER" in refusal(
        parse, capsys, "--edsd.num-tokens", "3"
    )


def test_a_plan_alone_turns_it_on(parse, moe, plan):
    given = '{"mine": 1}'
    namespace, prepared = parse("--edsd.experts", str(plan), "--additional-config", given, target=moe)
    assert namespace.speculative_config is None and prepared == [None]
    assert namespace.worker_cls == "vllm_edsd.engine.experts_worker.ExpertsCPUWorker"
    assert namespace.additional_config["mine"] == 1
    found = namespace.additional_config["edsd"]["experts"]
    assert (found["plan"], found["mode"]) == (str(plan), "prefill")


def test_a_plan_from_the_environment(parse, moe, plan, monkeypatch):
    monkeypatch.setenv("EDSD_EXPERTS", str(plan))
    monkeypatch.setenv("EDSD_EXPERTS_MODE", "all")
    assert parse(target=moe)[0].additional_config["edsd"]["experts"]["mode"] == "all"
    other = parse("--edsd.experts-mode", "prefill", target=moe)[0]
    assert other.additional_config["edsd"]["experts"]["mode"] == "prefill"


def test_a_plan_goes_with_another_kind_of_speculation(parse, moe, plan):
    namespace, _ = parse("--edsd.experts", str(plan), "--speculative-config", '{"method": "ngram"}', target=moe)
    assert namespace.speculative_config == {"method": "ngram"}
    assert namespace.additional_config.keys() == {"edsd"}


def test_a_plan_that_cannot_be_used_is_refused(parse, moe, plan, make_target, capsys):
    assert "ranks disagree" in refusal(parse, capsys, "--edsd.experts", str(plan), target=moe, obstacle="ranks disagree")
    assert "is no plan" in refusal(parse, capsys, "--edsd.experts", "nothing-there", target=moe)
    other = make_target("other", **MOE, rope_theta=5.0)
    assert "made for another model" in refusal(parse, capsys, "--edsd.experts", str(plan), target=other)
    assert "has None" in refusal(parse, capsys, "--edsd.experts", str(plan))  # a dense target


def test_an_unknown_mode_lists_the_known(parse, moe, plan, capsys):
    told = refusal(parse, capsys, "--edsd.experts", str(plan), "--edsd.experts-mode", "decode", target=moe)
    assert "--edsd.experts-mode (" in told and " cannot be 'decode'; give 'prefill' or 'all'" in told


def test_options_without_what_they_are_for(parse, moe, plan, capsys):
    told = refusal(parse, capsys, "--edsd.experts", str(plan), "--edsd.num-tokens", "3", target=moe)
    assert "num_tokens '3' is for a drafter, and there is none" in told
    told = refusal(parse, capsys, "--edsd.experts-mode", "all")
    assert "--edsd.experts-mode needs a plan; add --edsd.experts PLAN or set EDSD_EXPERTS" in told


def test_a_target_that_is_not_there_is_refused(parse, make_drafter, tmp_path, capsys):
    told = refusal(parse, capsys, "--edsd", str(make_drafter()), target=tmp_path / "smollm2")
    assert f"smollm2 does not exist; make it with: vllm-edsd target smollm2 --out {tmp_path / 'smollm2'}" in told


def test_broken_json_is_refused(parse, capsys):
    assert "is not valid JSON" in refusal(parse, capsys, "--edsd", '{"drafter": ')


def test_absent_and_misfit_drafters_are_refused(parse, make_drafter, capsys):
    assert "drafter 'nothing-there' is neither" in refusal(parse, capsys, "--edsd", "nothing-there")
    misfit = make_drafter(vocab_size=300)
    assert "vocab_size 300" in refusal(parse, capsys, "--edsd", str(misfit))


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        (["serve", "m"], {}, False),
        (["serve", "m", "--edsd", "x"], {}, True),
        (["serve", "m", "--edsd=x"], {}, True),
        (["serve", "m", "--edsd.num-tokens", "3"], {}, True),
        (["serve", "m", "--edsdx"], {}, False),
        (["serve", "m"], {"EDSD_DRAFTER": "x"}, True),
        (["serve", "m"], {"EDSD_EXPERTS": "x"}, True),
        (["serve", "m"], {"EDSD_EXPERTS_MODE": "all"}, False),
        (["serve", "m"], {"EDSD_DRAFTER": "", "EDSD_NUM_TOKENS": "3"}, False),
    ],
)
def test_asked_for(arguments, environ, expected):
    assert flags.asked_for(arguments, environ) is expected


def test_without_a_token_there_is_no_administration(parse, make_drafter):
    namespace, _ = parse("--edsd", str(make_drafter()))
    assert namespace.middleware == []


def test_with_a_token_the_middleware_joins_those_that_were_given(parse, make_drafter, monkeypatch):
    monkeypatch.setenv("EDSD_ADMIN_TOKEN", "0123456789abcdef")
    namespace, _ = parse("--edsd", str(make_drafter()), "--middleware", "somebody.Else")
    assert namespace.middleware == ["somebody.Else", "vllm_edsd.engine.admin.Admin"]
    module, _, name = namespace.middleware[1].rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)


@pytest.mark.parametrize(
    ("token", "arguments", "told"),
    [("short", (), "5 characters"), ("0123456789abcdef", ("--edsd.policy", "fixed"), "a policy that adapts")],
)
def test_a_token_that_cannot_serve_is_refused_and_not_shown(
    token, arguments, told, parse, make_drafter, monkeypatch, capsys
):
    monkeypatch.setenv("EDSD_ADMIN_TOKEN", token)
    message = refusal(parse, capsys, "--edsd", str(make_drafter()), *arguments)
    assert told in message
    assert "EDSD_ADMIN_TOKEN" in message
    assert token not in message


BUILT = [
    ((), None, {"architectures": ["EdsdMixtralForCausalLM"]}),
    (("--hf-overrides", '{"a": 1}'), None, {"a": 1, "architectures": ["EdsdMixtralForCausalLM"]}),
    (("--hf-overrides", '{"architectures": ["OlmoeForCausalLM"]}'), None, {"architectures": ["EdsdOlmoeForCausalLM"]}),
    (("--hf-overrides", '{"architectures": ["LlamaForCausalLM"]}'), None, {"architectures": ["LlamaForCausalLM"]}),
    (("--model-impl", "transformers"), None, {}),
    ((), "trigram", {}),
]


@pytest.mark.parametrize(("given", "proposer", "expected"), BUILT, ids=str)
def test_targets_without_hidden_states_are_built_by_our_class(given, proposer, expected, parse, make_target, make_drafter):
    mixtral = make_target("mixtral", architectures=["MixtralForCausalLM"])
    namespace, _ = parse("--edsd", proposer or str(make_drafter()), *given, target=mixtral)
    assert namespace.hf_overrides == expected


def test_other_targets_are_built_as_ever(parse, make_drafter):
    namespace, _ = parse("--edsd", str(make_drafter()))
    assert namespace.hf_overrides == {}
