"""What `--edsd.experts` becomes in vLLM's own terms, with a drafter and without, and what is refused."""

import json

import pytest
import torch

from vllm_edsd import serving
from vllm_edsd.config import ServeConfig
from vllm_edsd.drafters.target import read_target
from vllm_edsd.errors import UserError
from vllm_edsd.experts import plan as plans
from vllm_edsd.experts.hook import Hook
from vllm_edsd.fingerprint import model_fingerprint
from vllm_edsd.place import Place

EXPERTS_WORKER = "vllm_edsd.engine.experts_worker.ExpertsCPUWorker"
ADAPTIVE_WORKER = "vllm_edsd.engine.worker.AdaptiveCPUWorker"
MOE = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
}


@pytest.fixture
def target(make_target):
    """A target of 4 layers, 4 experts per token."""
    return make_target("moe", **MOE)


@pytest.fixture
def plan(target, tmp_path):
    """A plan for it with a hook, measured for prompts."""
    fitting = {"model": model_fingerprint(target), "num_hidden_layers": 4, "top_k": 4, "mode": "prefill"}
    place = plans.HookPlace(layers=(1, 2), rank=4)
    hooks = {layer: Hook(torch.zeros(4, 64), torch.zeros(64, 4)) for layer in place.layers}
    plans.write(plans.Plan(**fitting, experts={0: 4, 1: 2, 2: 1, 3: 1}, hook=place), hooks, tmp_path / "plan")
    return tmp_path / "plan"


@pytest.fixture
def arguments(target, plan):
    def make(obstacle=None, **options):
        config = ServeConfig(**{"experts": plan} | options)
        return serving.engine_arguments(config, read_target(str(target)), Place(obstacle, obstacle))

    return make


def settings(plan, mode="prefill"):
    mark = plans.fingerprint(plan)
    return {"plan": str(plan), "mode": mode, "measured_for": "prefill", "fingerprint": mark, "share": 0.5}


def test_a_plan_alone_brings_our_worker_and_no_speculation(arguments, plan):
    assert arguments() == {"worker_cls": EXPERTS_WORKER, "additional_config": {"edsd": {"experts": settings(plan)}}}


def test_the_mode_is_the_users(arguments, plan):
    assert arguments(experts_mode="all")["additional_config"]["edsd"]["experts"] == settings(plan, "all")


def test_a_relative_plan_is_found_by_every_process(arguments, plan, monkeypatch):
    monkeypatch.chdir(plan.parent)
    assert arguments(experts="plan") == arguments()


def test_with_a_drafter_that_adapts(arguments, plan, make_drafter):
    drafter = str(make_drafter())
    found, alone = (arguments(drafter=drafter, **options) for options in ({}, {"experts": None}))
    assert found["additional_config"]["edsd"].pop("experts") == settings(plan)
    assert found == alone
    assert found["worker_cls"] == ADAPTIVE_WORKER
    assert found["hf_overrides"] == {"architectures": ["EdsdQwen2MoeForCausalLM"]}


def test_with_a_drafter_of_fixed_length(arguments, plan, make_drafter):
    found = arguments(drafter=str(make_drafter()), policy="fixed")
    assert found["speculative_config"]["num_speculative_tokens"] == 2
    assert found["worker_cls"] == EXPERTS_WORKER
    assert found["additional_config"] == {"edsd": {"experts": settings(plan)}}


def test_with_a_model_free_proposer(arguments, plan):
    found = arguments(drafter="trigram", num_tokens=3)
    assert found["speculative_config"]["num_speculative_tokens"] == 3
    assert found["worker_cls"] == EXPERTS_WORKER
    assert found["additional_config"] == {"edsd": {"proposer": "trigram", "experts": settings(plan)}}


@pytest.mark.parametrize(
    ("option", "value"),
    [("policy", "evict"), ("num_tokens", 3), ("verification", "block"), ("draft_sample_method", "probabilistic")],
)
def test_options_of_a_drafter_need_one(option, value, arguments):
    with pytest.raises(
        UserError, match=f"^{option} '{value}' is for a drafter, and there is none; give one, or leave it out"
    ):
        arguments(**{option: value})


def test_what_only_a_drafter_has_is_refused_by_name(arguments, tmp_path):
    for option in ("record", "profile"):
        with pytest.raises(UserError, match=f"^{option} .* is for a drafter"):
            arguments(**{option: tmp_path / "file"})


def test_a_mode_without_a_plan_is_refused(arguments, make_drafter):
    with pytest.raises(UserError, match=r"^experts_mode 'all' .*no plan"):
        arguments(drafter=str(make_drafter()), experts=None, experts_mode="all")


@pytest.mark.parametrize("options", [{}, {"drafter": "trigram"}], ids=str)
def test_an_obstacle_is_told(options, arguments, plan):
    with pytest.raises(UserError, match=rf"^experts {plan} cannot be used: ranks disagree; leave it out"):
        arguments("ranks disagree", **options)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 5}, "num_hidden_layers 5, and .* has 4"),
        ({"top_k": 6}, "top_k 6, and .* has 4"),
        ({"model": "other"}, "was made for another model"),
        ({"experts": {"0": 9}, "hook": None}, "layer 0 has 9 experts; possible are 1 to 4"),
    ],
    ids=str,
)
def test_a_plan_of_another_target_is_refused(changes, told, arguments, plan):
    file = plan / plans.PLAN
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=told):
        arguments()


def test_a_hook_that_cannot_be_read_is_refused_before_the_start(arguments, plan):
    (plan / plans.HOOK).write_bytes(b"half")
    with pytest.raises(UserError, match=r"hook\.safetensors is damaged or not for 64 dimensions at rank 4"):
        arguments()


def test_what_is_prepared(arguments, plan, target, make_drafter):
    told = []

    def ready(shape, model_free, experts, v2):
        told.append((None if shape is None else shape.hidden_size, model_free, experts))

    for options in ({}, {"drafter": "trigram"}, {"drafter": str(make_drafter())}):
        found = arguments(**options)
        serving.prepare(ready, ServeConfig(experts=plan, **options), read_target(str(target)), found)
    fewer = settings(plan)
    assert told == [(None, False, fewer), (None, True, fewer), (64, False, fewer)]


def test_an_options_call_that_asks_for_nothing_is_refused():
    import vllm_edsd

    with pytest.raises(UserError, match="give a drafter, or experts=PLAN, or both"):
        vllm_edsd.options()


def test_a_plan_of_a_target_by_hub_id_is_not_judged_yet(plan):
    found = serving.engine_arguments(ServeConfig(experts=plan), None, Place())
    assert found["additional_config"]["edsd"]["experts"] == settings(plan)


def test_the_hook_is_part_of_the_fingerprint(arguments, plan):
    before = arguments()["additional_config"]["edsd"]["experts"]["fingerprint"]
    hooks = {layer: Hook(torch.zeros(4, 64), torch.ones(64, 4)) for layer in (1, 2)}
    plans.write(plans.read(plan), hooks, plan)
    assert arguments()["additional_config"]["edsd"]["experts"]["fingerprint"] != before
