"""vLLM's drafter and the trainable one: same weights, same inputs, the same logits through every draft step.

With both model runners; V2 with its kernels interpreted.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from vllm_edsd.drafters import factory
from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.drafters.layers import DraftCache
from vllm_edsd.training.export import export
from vllm_edsd.training.target import TargetEnds

RUNNERS = {"V1": ("capture_drafts.py", "said"), "V2": ("capture_drafts_v2.py", "said-v2")}
KINDS = {
    "edsd": ((2, 3), "Eagle3EdsdModel"),
    "edsd-normed": ((2, 3), "Eagle3EdsdModel"),
    "eagle3": ((1, 2, 3), "Eagle3LlamaForCausalLM"),
    "eagle3.1": ((1, 2, 3), "Eagle3LlamaForCausalLM"),
}


@pytest.fixture(scope="module")
def folder(tiny_target, tmp_path_factory):
    """A random drafter of each kind, and what vLLM's copy of it said."""
    folder = tmp_path_factory.mktemp("parity")
    target = TargetEnds.read(tiny_target)
    for kind, (layers, _) in KINDS.items():
        torch.manual_seed(2)
        config = DrafterConfig.of_target(target.config, "tiny-target", kind, layers, 50)
        drafter = factory.build(config, torch.randperm(128)[:50].sort().values)
        for parameter in drafter.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            else:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        export(config, drafter.state_dict(), folder / kind / "drafter", {})
    for script, _ in RUNNERS.values():
        command = [sys.executable, Path(__file__).with_name(script), tiny_target, *(folder / kind for kind in KINDS)]
        result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(params=[(kind, runner) for kind in KINDS for runner in RUNNERS], ids="-".join)
def captured(request, folder):
    """(checkpoint of a random drafter, what vLLM's copy of it said)."""
    kind, runner = request.param
    with safe_open(folder / kind / RUNNERS[runner][1], "pt") as file:
        assert KINDS[kind][1] in file.metadata()["model"]
        said = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    return folder / kind / "drafter", said


@torch.inference_mode()
def test_logits_agree_through_every_draft_step(captured, tiny_target):
    checkpoint, said = captured
    drafter, target = factory.load(checkpoint), TargetEnds.read(tiny_target)
    text = torch.cat([said["prompt"], said["answer"]])
    features, compared = said["features"][None], 0
    for start, drafts, logits in zip(said["starts"].tolist(), said["drafts"], said["logits"], strict=True):
        if start + 2 > len(text):
            continue  # the last step drafts beyond the answer
        cache = DraftCache()
        visible = torch.ones(1, 1, start + 1, dtype=torch.bool)
        tokens = target.embedding[text[1 : start + 2]][None]
        state = drafter.first(features[:, : start + 1], tokens, torch.arange(start + 1)[None], cache, visible)
        for step, draft in enumerate(drafts):
            if step:
                token = target.embedding[drafts[step - 1]][None, None]
                state = drafter.next(state, token, torch.tensor([[start + step]]), cache, visible)
            ours = drafter.logits(state)[0, 0]
            theirs = logits[step]
            torch.testing.assert_close(ours, theirs[drafter.draft_ids], rtol=1e-4, atol=1e-4)
            assert torch.isinf(theirs[~drafter.t2d]).all()
            assert drafter.draft_ids[ours.argmax()] == draft
            compared += 1
    assert compared >= 40


@torch.inference_mode()
def test_captured_states_are_those_trained_on(captured, tiny_target):
    checkpoint, said = captured
    layers = factory.load(checkpoint).config.layers
    text = torch.cat([said["prompt"], said["answer"]])[:-1]
    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float32)
    states = model(text[None], output_hidden_states=True).hidden_states
    ours = torch.cat([states[layer] for layer in layers], dim=-1)[0]
    torch.testing.assert_close(said["features"][: len(text)], ours, rtol=1e-3, atol=1e-3)
