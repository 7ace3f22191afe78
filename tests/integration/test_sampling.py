"""Sampled speculation on the CPU backend follows the target's distribution, whatever verifies; the controls do not.

Controls are stock vLLM's fallback, and drafts that the sampled token itself cuts: by its probability, or by a grammar.
"""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
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
    """Makes the exact distributions of token one, tokens one and two, and two and three: [V], [V, V], [V, V]."""
    model = AutoModelForCausalLM.from_pretrained(tiny_target, dtype=torch.float32)

    def following(*tokens):
        """Logits of the next token, [N, V], after the prompt and these columns of N tokens."""
        prompt = torch.tensor(SETTINGS["PROMPT"]).expand(len(tokens[0]) if tokens else 1, -1)
        return (model(torch.column_stack([prompt, *tokens])).logits[:, -1] / SETTINGS["TEMPERATURE"]).double()

    every = torch.arange(128)
    logits = following(), following(every), following(every.repeat_interleave(128), every.repeat(128))

    def chances(allowed):
        forbidden = torch.tensor([token not in allowed for token in range(128)])
        first, second, third = (rows.masked_fill(forbidden, -torch.inf).softmax(-1) for rows in logits)
        pair = first.T * second
        return first[0], pair, torch.einsum("ab,abc->bc", pair, third.view(128, 128, 128))

    return chances


class Run:
    """Answers of one way, and what was counted."""

    def __init__(self, out, count):
        with safe_open(out, "pt") as file:
            self.answers, told = file.get_tensor("answers"), file.metadata()
        assert len(self.answers) == count
        self.sampler, self.accepted, self.besides = told["sampler"], int(told["accepted"]), int(told["besides"])

    def p_values(self, expected):
        """One for each of the distributions; cells that should hold fewer than five are one cell."""
        found = []
        for place, chances in enumerate(expected):
            assert chances.sum() == pytest.approx(1)
            cells = self.answers[:, 0] if place == 0 else self.answers[:, place - 1] * 128 + self.answers[:, place]
            counts = torch.bincount(cells, minlength=chances.numel()).double()
            wanted = chances.flatten() * len(self.answers)
            common = wanted >= 5
            observed = torch.cat([counts[common], counts[~common].sum()[None]])
            wanted = torch.cat([wanted[common], wanted[~common].sum()[None]])
            found.append(float(chisquare(observed.numpy(), (wanted * observed.sum() / wanted.sum()).numpy()).pvalue))
        return found


def allowed(how):
    return SETTINGS["EVEN"] if how.startswith("grammar") else range(128)


COUNTS = {
    "stock": 20_000,
    "edsd": 20_000,
    "greedy": 20_000,
    "standard": 100_000,
    "own": 20_000,
    "block": 100_000,
    "own-block": 20_000,
    "grammar": 20_000,
    "grammar-drawn": 20_000,
}
LEVEL = 1e-3 / 19  # chance of one false alarm in a thousand among all p-values that should not be small (Bonferroni)


@pytest.fixture(scope="module")
def run(tiny_target, drafter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    wanted = [f"{how}={count}" for how, count in COUNTS.items()]
    command = [sys.executable, str(SCRIPT), str(tiny_target), str(drafter), str(folder), *wanted]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return lambda how: Run(folder / how, COUNTS[how])


@pytest.mark.parametrize(
    ("how", "sampler", "accepted"),
    [
        ("edsd", "RejectionSampler", 0),
        ("greedy", "BlockVerifier", 50),
        ("grammar", "BlockVerifier", 50),
        ("standard", "RejectionSampler", 20_000),
        ("block", "BlockVerifier", 20_000),
    ],
)
def test_sampled_tokens_follow_the_target(how, sampler, accepted, run, expected):
    found = run(how)
    assert found.sampler == sampler
    assert found.accepted >= accepted, "too little was put to the test"
    assert (found.besides > 1000) is (how == "standard"), "drafts of a model-free proposer are among standard's alone"
    assert min(found.p_values(expected(allowed(how)))) > LEVEL


@pytest.mark.parametrize("how", ["stock", "own", "own-block", "grammar-drawn"])
def test_the_controls_fail(how, run, expected):
    first, *others = run(how).p_values(expected(allowed(how)))
    assert first > LEVEL, "the first token is sampled without speculation"
    assert max(others) < 1e-6, "stock: vLLM samples correctly on this backend now, remove the mend"
