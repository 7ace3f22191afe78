import json
import os
import subprocess
import sys

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.model_executor.models import ModelRegistry
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.import_utils import resolve_obj_by_qualname

import vllm_edsd
from vllm_edsd import compat, plugin
from vllm_edsd.drafters.target import TargetShape
from vllm_edsd.engine import cpu, hooks, serve
from vllm_edsd.engine.worker import AdaptiveCPUWorker
from vllm_edsd.errors import UserError
from vllm_edsd.place import Place

NAMESPACE = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
print(json.dumps({key: repr(value) for key, value in vars(parser.parse_args(["--model", "m", "--seed", "1"])).items()}))
"""


@pytest.fixture
def vanilla(monkeypatch):
    """EngineArgs as vLLM made it, and put back afterwards."""
    original = getattr(EngineArgs.add_cli_args, "__wrapped__", EngineArgs.add_cli_args)
    monkeypatch.setattr(EngineArgs, "add_cli_args", staticmethod(original))
    return original


def test_namespace_is_the_same_with_and_without_the_plugin():
    def namespace(plugins: str) -> dict[str, str]:
        environ = {**os.environ, "VLLM_PLUGINS": plugins, "VLLM_LOGGING_LEVEL": "ERROR"}
        output = subprocess.run([sys.executable, "-c", NAMESPACE], env=environ, capture_output=True, text=True, check=True)
        return json.loads(output.stdout.splitlines()[-1])

    assert namespace("edsd") == namespace("")


def test_register_twice_adds_one_flag(vanilla):
    plugin.register()
    plugin.register()
    assert EngineArgs.add_cli_args.__wrapped__ is vanilla
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    assert "--edsd" in parser.format_help() or "--edsd" in parser._option_string_actions
    assert "Eagle3EdsdModel" in ModelRegistry.get_supported_archs()


def test_flag_fills_what_engine_args_take(vanilla, make_target, make_drafter, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    plugin.register()
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    arguments = parser.parse_args(["--model", str(make_target()), "--edsd", str(make_drafter()), "--edsd.num-tokens", "3"])
    taken = AsyncEngineArgs.from_cli_args(arguments)
    assert taken.speculative_config["num_speculative_tokens"] == 3
    assert all(str(library) in os.environ["LD_PRELOAD"] for library in cpu.preload_libraries())


def test_engine_args_take_a_policy_beside_what_the_user_gave(vanilla, make_target, make_drafter, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(serve, "place", lambda arguments: Place())
    plugin.register()
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    given = ["--model", str(make_target()), "--additional-config", '{"mine": 1}']
    drafting = ["--edsd", str(make_drafter()), "--edsd.policy", "entropy"]
    taken = AsyncEngineArgs.from_cli_args(parser.parse_args([*given, *drafting]))
    assert taken.additional_config.keys() == {"mine", "edsd"}
    assert (taken.additional_config["mine"], taken.additional_config["edsd"]["policy"]) == (1, "entropy")
    assert resolve_obj_by_qualname(taken.worker_cls) is AdaptiveCPUWorker
    taken = AsyncEngineArgs.from_cli_args(parser.parse_args(given))
    assert (taken.additional_config, taken.worker_cls) == ({"mine": 1}, "auto")


def test_engine_args_that_forbid_adapting_keep_their_own(vanilla, make_target, make_drafter, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    plugin.register()
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    command = ["--model", str(make_target()), "--edsd", str(make_drafter()), "--pipeline-parallel-size", "2"]
    taken = AsyncEngineArgs.from_cli_args(parser.parse_args(command))
    assert (taken.pipeline_parallel_size, taken.worker_cls, taken.additional_config) == (2, "auto", {})
    assert taken.speculative_config["num_speculative_tokens"] == 2


@pytest.mark.parametrize("asked", [False, True], ids=["silent", "refused"])
@pytest.mark.parametrize("broken", ["version", "hook"])
def test_unknown_vllm(asked, broken, vanilla, monkeypatch, capsys):
    if broken == "version":
        monkeypatch.setattr(compat, "vllm_version", lambda: "0.99.0")
    else:
        monkeypatch.setattr(hooks, "REGISTER", (hooks.Hook("vllm.engine.arg_utils", "EngineArgs.gone", ("parser",)),))
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "m", *(["--edsd", "x"] if asked else [])])
    monkeypatch.delenv("EDSD_DRAFTER", raising=False)
    if asked:
        with pytest.raises(SystemExit) as ended:
            plugin.register()
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and ("0.99.0" if broken == "version" else "EngineArgs.gone") in told
    else:
        plugin.register()
        assert capsys.readouterr().err == ""
    assert EngineArgs.add_cli_args is vanilla


@pytest.mark.parametrize(
    ("name", "expected", "told"),
    [
        ("EngineArgs.add_cli_args", ("args",), "parameters are (parser), expected (args)"),
        ("EngineArgs", ("speculation",), "has no field speculation"),
        ("Nothing", ("x",), "not found"),
    ],
    ids=["signature", "field", "absent"],
)
def test_changed_hooks_are_told(name, expected, told):
    assert told in str(hooks.problem([hooks.Hook("vllm.engine.arg_utils", name, expected)]))


@pytest.mark.parametrize("places", [hooks.SERVE, hooks.ADAPT, hooks.V2], ids=["serve", "adapt", "v2"])
def test_every_hook_is_as_expected_in_the_installed_vllm(places):
    assert hooks.problem(places) is None


ARCHITECTURES = [("LlamaForCausalLM", True), ("GPT2LMHeadModel", False), ("Unheard", True)]
ARCHITECTURES += [(name, True) for name in hooks.TARGET_MODELS]


@pytest.mark.parametrize(("architecture", "fits"), ARCHITECTURES)
def test_targets_without_auxiliary_hidden_states_are_refused(architecture, fits):
    target = TargetShape("some-target", 64, 256, 4, (architecture,))
    if fits:
        serve.check_aux_hidden_states(target)
    else:
        with pytest.raises(UserError, match=f"some-target is a {architecture}.*--model-impl transformers"):
            serve.check_aux_hidden_states(target)


@pytest.mark.parametrize("name", hooks.TARGET_MODELS)
def test_a_family_that_vllm_has_changed_is_refused(name, monkeypatch):
    monkeypatch.setattr(hooks, "INTERFACES", "vllm.nowhere")
    with pytest.raises(UserError, match=r"has changed vllm\.nowhere\.EagleModelMixin.*leave --edsd off"):
        serve.check_aux_hidden_states(TargetShape("some-target", 64, 256, 4, (name,)))


def test_options_name_our_class_where_the_target_needs_it(vanilla, make_target, make_drafter, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    plugin.register()
    drafter, olmoe = str(make_drafter()), make_target("olmoe", architectures=["OlmoeForCausalLM"])
    found = vllm_edsd.options(drafter, str(olmoe))
    assert found["hf_overrides"] == {"architectures": ["EdsdOlmoeForCausalLM"]}
    assert set(found["hf_overrides"]["architectures"]) <= set(ModelRegistry.get_supported_archs())
    assert "hf_overrides" not in vllm_edsd.options(drafter, str(make_target()))
    with pytest.raises(UserError, match=r"GPT2LMHeadModel.*gives no auxiliary hidden states"):
        vllm_edsd.options(drafter, str(make_target("gpt2", architectures=["GPT2LMHeadModel"])))
    with pytest.raises(UserError, match=r"hidden_size 64, but .* has 128"):
        vllm_edsd.options(drafter, str(make_target("wide", hidden_size=128)))


def test_options_for_python(make_drafter, monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    drafter = make_drafter()
    found = vllm_edsd.options(str(drafter), num_tokens=2)["speculative_config"]
    assert (found["method"], found["model"], found["num_speculative_tokens"]) == ("eagle3", str(drafter), 2)
    monkeypatch.setattr(serve, "place", lambda arguments: Place())
    assert vllm_edsd.options(str(drafter))["additional_config"]["edsd"]["policy"] == "evict"
    monkeypatch.setattr(serve, "place", lambda arguments: Place("ranks disagree", "ranks disagree"))
    assert vllm_edsd.options(str(drafter)).keys() == {"speculative_config"}
    with pytest.raises(UserError, match="policy 'evict' cannot be used: ranks disagree"):
        vllm_edsd.options(str(drafter), policy="evict")
    with pytest.raises(UserError, match=r"vllm_edsd\.options: unknown key 'k' \(value 2\); known: 'drafter', 'policy'"):
        vllm_edsd.options(str(drafter), k=2)
    with pytest.raises(UserError, match="target /no/such/target does not exist; give a directory or a hub id"):
        vllm_edsd.options(str(drafter), "/no/such/target")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, vllm_edsd.plugin; print(sorted({'torch', 'vllm', 'transformers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "/t/libtcmalloc.so:/i/libiomp5.so"),
        ({"LD_PRELOAD": "/x/libgomp.so.1"}, "/t/libtcmalloc.so:/x/libgomp.so.1"),
        ({"LD_PRELOAD": "/x/libjemalloc.so"}, "/i/libiomp5.so:/x/libjemalloc.so"),
        ({"LD_PRELOAD": "/x/libtcmalloc.so:/x/libomp.so"}, "/x/libtcmalloc.so:/x/libomp.so"),
    ],
    ids=["nothing", "openmp", "allocator", "both"],
)
def test_preloading_leaves_the_users_choice(before, after, monkeypatch):
    monkeypatch.setattr(cpu, "tcmalloc", lambda: "/t/libtcmalloc.so")
    monkeypatch.setattr(cpu, "iomp", lambda: "/i/libiomp5.so")
    assert cpu.cpu_environment({"A": "b", **before}) == {"A": "b", "LD_PRELOAD": after}


def test_without_another_allocator_glibc_keeps_its_memory(monkeypatch):
    monkeypatch.setattr(cpu, "tcmalloc", lambda: None)
    monkeypatch.setattr(cpu, "iomp", lambda: None)
    assert cpu.cpu_environment({"A": "b"}) == {"A": "b", **cpu.GLIBC}
    assert cpu.cpu_environment({"MALLOC_TRIM_THRESHOLD_": "1"})["MALLOC_TRIM_THRESHOLD_"] == "1"
    assert cpu.cpu_environment({"LD_PRELOAD": "/x/libmimalloc.so"}) == {"LD_PRELOAD": "/x/libmimalloc.so"}
