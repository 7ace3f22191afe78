"""What `--edsd` becomes in vLLM's own terms."""

import importlib

import pytest
from pydantic import ValidationError

from vllm_edsd.config import ServeConfig
from vllm_edsd.errors import UserError
from vllm_edsd.place import Place
from vllm_edsd.policy import registry
from vllm_edsd.serving import administration, engine_arguments

ADAPTIVE = [name for name in registry.OURS if name != "fixed"]


@pytest.fixture
def arguments(make_drafter):
    drafter = str(make_drafter())

    def make(obstacle=None, **options):
        return engine_arguments(ServeConfig(drafter=drafter, **options), None, Place(obstacle, obstacle))

    return make


def test_where_nothing_forbids_it_the_length_adapts(arguments):
    found = arguments()
    assert found["speculative_config"]["num_speculative_tokens"] == 8
    assert found["speculative_config"]["disable_padded_drafter_batch"] is True
    assert found["worker_cls"] == "vllm_edsd.engine.worker.AdaptiveCPUWorker"
    assert found["additional_config"].keys() == {"edsd"}
    assert found["additional_config"]["edsd"]["policy"] == "evict"


def test_where_something_forbids_it_the_length_is_fixed(arguments):
    found = arguments("ranks disagree")
    assert found.keys() == {"speculative_config"}
    assert found["speculative_config"]["num_speculative_tokens"] == 2
    assert "disable_padded_drafter_batch" not in found["speculative_config"]


@pytest.mark.parametrize("obstacle", [None, "ranks disagree"])
def test_a_fixed_length_can_always_be_asked_for(arguments, obstacle):
    assert arguments(obstacle, policy="fixed") == arguments("ranks disagree")


@pytest.mark.parametrize("policy", ADAPTIVE)
def test_the_policy_that_is_asked_for_reaches_the_worker(arguments, policy):
    found = arguments(policy=policy)
    default = arguments()
    assert found["additional_config"]["edsd"].pop("policy") == policy
    assert default["additional_config"]["edsd"].pop("policy") == "evict"
    assert found["additional_config"]["edsd"].pop("beside") == ("lookup" if policy == "evict" else None)
    assert default["additional_config"]["edsd"].pop("beside") == "lookup"
    assert found == default


def test_what_stands_beside_the_drafter(arguments):
    def beside(**options):
        return arguments(**options)["additional_config"]["edsd"]["beside"]

    assert beside(beside="trigram") == beside(policy="entropy", beside="trigram") == "trigram"
    assert beside(beside="none") is None and beside(verification="block", policy="fixed", beside="none") is None
    assert "additional_config" not in arguments(policy="fixed", beside="none")
    with pytest.raises(UserError, match=r"beside 'trigram' is for a policy that adapts, and the policy is fixed"):
        arguments(policy="fixed", beside="trigram")
    with pytest.raises(ValidationError, match="unknown; known: lookup, trigram, none"):
        arguments(beside="tri")


@pytest.mark.parametrize("policy", ADAPTIVE)
def test_a_policy_that_is_asked_for_in_vain_is_refused(arguments, policy):
    with pytest.raises(UserError, match=f"^policy '{policy}' cannot be used: ranks disagree; give policy fixed"):
        arguments("ranks disagree", policy=policy)


@pytest.mark.parametrize("policy", ["fixed", "evict"])
def test_the_number_of_tokens_is_the_users(arguments, policy):
    assert arguments(policy=policy, num_tokens=3)["speculative_config"]["num_speculative_tokens"] == 3


@pytest.mark.parametrize("policy", ["fixed", "evict"])
@pytest.mark.parametrize(("method", "local"), [("greedy", True), ("probabilistic", False)])
def test_drafts_are_picked_as_asked_under_any_policy(arguments, policy, method, local):
    found = arguments(policy=policy, draft_sample_method=method)["speculative_config"]
    assert (found["draft_sample_method"], found["use_local_argmax_reduction"]) == (method, local)


@pytest.mark.parametrize("policy", ["fixed", "evict"])
@pytest.mark.parametrize("method", ["greedy", "probabilistic"])
def test_block_verification_brings_our_worker_under_any_policy(arguments, policy, method):
    found = arguments(policy=policy, verification="block", draft_sample_method=method)
    assert found["worker_cls"] == "vllm_edsd.engine.worker.AdaptiveCPUWorker"
    options = found["additional_config"]["edsd"]
    assert (options["policy"], options["verification"]) == (policy, "block")
    assert found["speculative_config"]["draft_sample_method"] == method


def test_a_record_that_has_no_place_is_refused(arguments, tmp_path):
    found = arguments(record=tmp_path / "steps.jsonl")
    assert found["additional_config"]["edsd"]["record"] == str(tmp_path / "steps.jsonl")
    for wrong in (tmp_path, tmp_path / "no" / "steps.jsonl", tmp_path / "drafter" / "config.json" / "steps.jsonl"):
        with pytest.raises(
            UserError, match=f"^record {wrong} is no file in an existing directory; make {wrong.parent}, or give"
        ):
            arguments(record=wrong)


def test_block_verification_that_is_asked_for_in_vain_is_refused(arguments):
    with pytest.raises(UserError, match=r"^verification 'block' cannot be used: ranks disagree; give verification standard"):
        arguments("ranks disagree", policy="fixed", verification="block")


@pytest.fixture
def on_gpu(make_drafter):
    drafter = str(make_drafter())

    def make(**options):
        return engine_arguments(ServeConfig(drafter=drafter, **options), None, Place("the backend is cuda", None))

    return make


def test_on_a_gpu_the_length_is_fixed_unless_asked_otherwise(on_gpu):
    assert on_gpu() == on_gpu(policy="fixed") == on_gpu(beside="none")
    assert on_gpu().keys() == {"speculative_config"} and on_gpu()["speculative_config"]["num_speculative_tokens"] == 2


def test_on_a_gpu_evict_is_vllms_adaptive_verification_and_our_worker(on_gpu):
    found = on_gpu(policy="evict")
    assert found["speculative_config"]["enable_adaptive_verification"] is True
    assert found["speculative_config"]["use_local_argmax_reduction"] is False
    assert found["speculative_config"]["num_speculative_tokens"] == 8
    assert "disable_padded_drafter_batch" not in found["speculative_config"]
    module, _, name = found["worker_cls"].rpartition(".")
    assert isinstance(getattr(importlib.import_module(module), name), type)
    assert found["additional_config"] == {"edsd": {"policy": "evict", "verification": "standard"}}


@pytest.mark.parametrize("policy", ["fixed", "evict"])
def test_on_a_gpu_vllm_verifies_blocks(on_gpu, policy):
    found = on_gpu(policy=policy, verification="block", draft_sample_method="probabilistic")["speculative_config"]
    assert (found["rejection_sample_method"], found["draft_sample_method"]) == ("block", "probabilistic")
    assert "rejection_sample_method" not in on_gpu(policy=policy)["speculative_config"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"policy": "bandit"}, r"policy 'bandit' is for vLLM's CPU backend; give policy fixed or evict"),
        ({"policy": "evict", "beside": "lookup"}, r"beside 'lookup' is for vLLM's CPU backend; leave it out"),
        ({"policy": "evict", "record": "steps.jsonl"}, r"record 'steps.jsonl' is for vLLM's CPU backend; leave it out"),
        ({"policy": "evict", "profile": "costs.json"}, r"profile 'costs.json' is for vLLM's CPU backend; leave it out"),
    ],
    ids=lambda value: str([*value]) if isinstance(value, dict) else "",
)
def test_what_a_gpu_does_not_have_is_refused(on_gpu, options, told):
    with pytest.raises(UserError, match=f"^{told}"):
        on_gpu(**options)


def test_where_a_gpu_cannot_evict_its_own_reason_is_told(make_drafter):
    config = ServeConfig(drafter=str(make_drafter()), policy="evict")
    with pytest.raises(UserError, match="policy 'evict' cannot be used: its runner is V1; give policy fixed"):
        engine_arguments(config, None, Place("the backend is cuda", "its runner is V1"))


@pytest.mark.parametrize("policy", ["fixed", "evict"])
def test_drafters_are_not_exchanged_on_a_gpu(on_gpu, policy):
    with pytest.raises(UserError, match="on vLLM's CPU backend"):
        administration("0123456789abcdef", on_gpu(policy=policy))
