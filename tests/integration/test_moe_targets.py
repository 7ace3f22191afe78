"""MoE targets whose vLLM class gives no hidden states: ours writes the same, plain or drafting, and gives the right ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from vllm_edsd.drafters import factory
from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.training.export import export
from vllm_edsd.training.target import TargetEnds

SCRIPT = Path(__file__).with_name("moe_targets.py")
LAYERS = (0, 2)
TOKENS = range(2, 8)  # of moe_targets.py
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
}
FAMILIES = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "mlp_only_layers": [1],
    },
    "GraniteMoe": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random target and drafter of each family, and what vLLM said with them."""
    folder = tmp_path_factory.mktemp("families")
    for family, changes in FAMILIES.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**SHAPE, **changes)
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder / family / "target")
        drafter = DrafterConfig.of_target(config, family, "edsd", LAYERS, len(TOKENS))
        weights = factory.build(drafter, torch.tensor(TOKENS)).state_dict()
        export(drafter, weights, folder / family / "drafter", {})
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder), *FAMILIES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(params=FAMILIES)
def served(request, folder):
    """(folder of the target, what vLLM said with it)."""
    return folder / request.param / "target", json.loads((folder / request.param / "said").read_text())


def test_plain_output_is_that_of_vllms_own_class(served):
    _, said = served
    assert said["stock"]["module"].startswith("vllm.") and said["ours"]["module"].startswith("vllm_edsd.")
    assert said["ours"]["answers"] == said["stock"]["answers"]
    assert said["ours"]["logprobs"] == said["stock"]["logprobs"]


def test_speculation_is_lossless(served):
    _, said = served
    assert said["drafting"]["answers"] == said["stock"]["answers"]
    assert said["drafting"]["drafted"] > 100
    assert said["drafting"]["accepted"] > 5


@torch.inference_mode()
def test_states_are_those_of_transformers(served):
    folder, said = served
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = torch.tensor([said["prompt"] + said["stock"]["answers"][0]])[:, :-1]
    hidden = model(text, output_hidden_states=True).hidden_states
    expected = torch.cat([hidden[layer] for layer in LAYERS], dim=-1)[0]
    states = torch.tensor(said["drafting"]["states"])
    assert len(states) >= len(said["prompt"])
    torch.testing.assert_close(states[: len(expected)], expected[: len(states)], rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_a_drafter_is_trained_on_the_logits_of_the_target(served):
    folder, said = served
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    output = model(torch.tensor([said["prompt"]]), output_hidden_states=True)
    torch.testing.assert_close(
        output.hidden_states[-1] @ TargetEnds.read(folder).head.T, output.logits, rtol=1e-4, atol=1e-4
    )
