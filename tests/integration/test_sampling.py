"""Sampled speculation on the CPU backend follows the target's distribution; stock vLLM's fallback, the control, does not."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM

from vllm_edsd.drafters import factory
from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.training.export import export
from vllm_edsd.training.target import TargetEnds

SCRIPT = Path(__file__).with_name("sample_tokens.py")
SETTINGS = runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def drafter(tiny_target, tmp_path_factory):
    torch.manual_seed(4)
    target = TargetEnds.read(tiny_target)
    config = DrafterConfig.of_target(target.config, "tiny-target", "edsd", (2, 3), 128)
    model = factory.build(config, torch.arange(128))
    folder = tmp_path_factory.mktemp("sampling") / "drafter"
    export(config, model.state_dict(), folder, {})
    return folder


@pytest.fixture(scope="module")
@torch.inference_mode()
def expected(tiny_target):
    """The exact distributions of the first and the second token, [2, V]."""
    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float32)
    prompt = torch.tensor(SETTINGS["PROMPT"])
    heat = SETTINGS["TEMPERATURE"]
    first = (model(prompt[None]).logits[0, -1] / heat).double().softmax(-1)
    continued = torch.cat([prompt.expand(128, -1), torch.arange(128)[:, None]], dim=1)
    second = first @ (model(continued).logits[:, -1] / heat).double().softmax(-1)
    return torch.stack([first, second])


def p_values(how, target, drafter, expected, out):
    command = [sys.executable, str(SCRIPT), str(target), str(drafter), str(out), how]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    answers = load_file(out)["answers"]
    found = []
    for position, chances in enumerate(expected):
        counts = torch.bincount(answers[:, position], minlength=128).double()
        wanted = chances * len(answers)
        common = wanted >= 5
        observed = torch.cat([counts[common], counts[~common].sum()[None]])
        wanted = torch.cat([wanted[common], wanted[~common].sum()[None]])
        found.append(chisquare(observed.numpy(), (wanted * observed.sum() / wanted.sum()).numpy()).pvalue)
    return found


def test_sampled_tokens_follow_the_target(tiny_target, drafter, expected, tmp_path):
    first, second = p_values("edsd", tiny_target, drafter, expected, tmp_path / "out")
    assert first > 1e-3
    assert second > 1e-3


def test_the_control_fails(tiny_target, drafter, expected, tmp_path):
    first, second = p_values("stock", tiny_target, drafter, expected, tmp_path / "out")
    assert first > 1e-3, "the first token is sampled without speculation"
    assert second < 1e-6, "stock vLLM samples correctly on this backend now: remove the mend"
