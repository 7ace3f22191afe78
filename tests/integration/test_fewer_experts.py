"""Fewer experts inside vLLM: the reference's predictions token by token, however a request is batched, chunked or cached."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from vllm_edsd.drafters import factory
from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.experts import plan as plans
from vllm_edsd.experts.hook import Hook
from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.replay import predictions, record
from vllm_edsd.experts.routed import routed_layers
from vllm_edsd.fingerprint import model_fingerprint
from vllm_edsd.training.export import export

SCRIPT = Path(__file__).with_name("fewer_experts.py")
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "initializer_range": 0.3,
    "num_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 64,
}
COUNTS = {0: 2, 1: 1, 2: 4, 3: 2}
WAYS = ("stock", "prefill+whole", "prefill", "all", "prefill+cached", "prefill+cached+unsalted", "prefill+tight")
OTHERS = ("prefill+drafting", "prefill+compiled", "all+compiled", "prefill+bfloat16", "prefill+two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random target, plans and a drafter for it, and what vLLM said in every way."""
    folder = tmp_path_factory.mktemp("fewer")
    torch.manual_seed(0)
    config = transformers.Qwen2MoeConfig(**SHAPE)
    model = transformers.Qwen2MoeForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.down_proj.mul_(8)  # so that it matters which experts are left out
    model.save_pretrained(folder / "target")
    width = SHAPE["hidden_size"]
    hooks = {layer: Hook(torch.randn(8, width) / width**0.5, 0.3 * torch.randn(width, 8)) for layer in (0, 1)}
    common = {"model": model_fingerprint(folder / "target"), "mode": "prefill", "num_hidden_layers": 4, "top_k": 4}
    place = plans.HookPlace(layers=tuple(hooks), rank=8)
    plans.write(plans.Plan(**common, experts=COUNTS, hook=place), hooks, folder / "half")
    plans.write(plans.Plan(**common, experts=dict.fromkeys(COUNTS, 4)), {}, folder / "whole")
    drafter = DrafterConfig.of_target(config, "tiny", "edsd", (0, 2), 50)
    export(drafter, factory.build(drafter, torch.arange(50)).state_dict(), folder / "drafter", {})
    subprocess.run([sys.executable, SCRIPT, folder, *WAYS, *OTHERS], check=True, timeout=900)
    return folder


def said(folder: Path, way: str) -> dict:
    return json.loads((folder / f"said-{way}.json").read_text())


def prompts() -> list[list[int]]:
    words = torch.Generator().manual_seed(5)
    return [torch.randint(2, 128, (length,), generator=words).tolist() for length in (40, 3, 17, 150, 33, 64)]


@torch.inference_mode()
def reference(folder: Path, mode: str, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probabilities [n, V] of the answer's places by transformers with the plan `half`."""
    model = transformers.Qwen2MoeForCausalLM.from_pretrained(folder / "target", dtype=torch.float32).eval()
    plan = plans.read(folder / "half")
    hooks = plans.read_hooks(folder / "half", plan.hook, SHAPE["hidden_size"])
    tokens = torch.tensor([[*prompt, *answer]])
    rows = torch.arange(tokens.shape[1])[None] < (len(prompt) - 1 if mode == "prefill" else tokens.shape[1])
    with reduced(routed_layers(model), plan.experts, rows, hooks):
        state = record(model, tokens).inputs[-1]
    return predictions(model, state, slice(len(prompt) - 1, tokens.shape[1] - 1))


def test_a_plan_that_cuts_nothing_changes_nothing(folder):
    stock, whole = said(folder, "stock"), said(folder, "prefill+whole")
    assert whole["answers"] == stock["answers"]
    assert whole["logprobs"] == stock["logprobs"]


@pytest.mark.parametrize("mode", ["prefill", "all"])
def test_every_token_is_the_references(folder, mode):
    found = said(folder, mode)
    assert found["answers"] != said(folder, "stock")["answers"]
    for prompt, answer, logprobs in zip(prompts(), found["answers"], found["logprobs"], strict=True):
        expected = reference(folder, mode, prompt, answer)
        assert expected.argmax(-1).tolist() == answer
        torch.testing.assert_close(torch.tensor(logprobs), expected.max(-1).values, atol=1e-3, rtol=1e-3)


def test_the_modes_differ(folder):
    assert said(folder, "prefill")["answers"] != said(folder, "all")["answers"]


def test_preemption_changes_nothing(folder):
    tight = said(folder, "prefill+tight")
    assert tight["preemptions"] > 0
    assert tight["answers"] == said(folder, "prefill")["answers"]
    assert tight["again"] == said(folder, "prefill")["again"]


def test_the_prefix_cache_never_mixes_what_different_experts_computed(folder):
    fresh, cached = said(folder, "prefill"), said(folder, "prefill+cached")
    assert cached["hits"] > 0
    assert cached["again"] == fresh["again"]
    torch.testing.assert_close(
        torch.tensor(cached["again_logprobs"]), torch.tensor(fresh["again_logprobs"]), atol=1e-3, rtol=0
    )
    unsalted = said(folder, "prefill+cached+unsalted")
    assert unsalted["hits"] > cached["hits"]
    gap = torch.tensor(unsalted["again_logprobs"]) - torch.tensor(fresh["again_logprobs"])
    assert gap.abs().max() > 1e-2  # the control: without the salt, answers' blocks stand in for prompts'


def test_drafting_changes_nothing(folder):
    drafting = said(folder, "prefill+drafting")
    assert drafting["drafted"] > 0
    assert drafting["answers"] == said(folder, "prefill")["answers"]


@pytest.mark.parametrize("mode", ["prefill", "all"])
def test_compiled_code_does_not_freeze_the_mode(folder, mode):
    assert said(folder, f"{mode}+compiled")["answers"] == said(folder, mode)["answers"]


def test_two_ranks_say_and_count_what_one_does(folder):
    one, two = said(folder, "prefill"), said(folder, "prefill+two")
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert (two["answers"], two["again"]) == (one["answers"], one["again"])
    assert two["usage"] == one["usage"]
    torch.testing.assert_close(torch.tensor(two["logprobs"]), torch.tensor(one["logprobs"]), atol=1e-3, rtol=0)


def test_bfloat16_runs(folder):
    assert [len(answer) for answer in said(folder, "prefill+bfloat16")["answers"]] == [24] * 6


def test_usage_counts_each_token_once(folder):
    whole, fewer = said(folder, "prefill+whole")["usage"], said(folder, "prefill")["usage"]
    given = sum(map(len, prompts()))
    # Both rounds: prompts, answers but for their last tokens; then prompt, answer and three more, and again an answer.
    read = given + given + 6 * (24 + 3)
    total = read + 2 * 6 * 23
    cut = read - 2 * 6  # a prompt's last token keeps all
    for layer, count in COUNTS.items():
        tokens, before, after, distinct, left, steps = fewer[str(layer)]
        assert (tokens, before) == (total, 4 * total) == tuple(whole[str(layer)][:2])
        assert after == count * cut + 4 * (total - cut)
        assert left <= distinct <= 8 * steps
        assert whole[str(layer)][2] == 4 * total
