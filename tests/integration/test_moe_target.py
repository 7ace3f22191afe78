"""The MoE target of the bundled difference: it speaks, needs its experts, and is the same in transformers and vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vllm_edsd.experts.reduction import reduced
from vllm_edsd.experts.routed import routed_layers
from vllm_edsd.targets import make_target

SCRIPT = Path(__file__).with_name("moe_logprobs.py")
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.2}
TEXT = (
    "Bread rises because yeast eats the sugars in the dough and gives off carbon dioxide. The gas is caught in a net of "
    "gluten, which forms when flour and water are kneaded, and the dough grows. In the oven the bubbles expand once more "
    "before the heat sets the crumb. A dough that has risen for too long collapses, because the net can no longer hold it."
)


@pytest.fixture(scope="module")
def moe(tmp_path_factory) -> Path:
    return make_target("smollm2-moe", tmp_path_factory.mktemp("targets") / "smollm2-moe")


@pytest.fixture(scope="module")
def tokens(moe) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(moe)(TEXT)["input_ids"]


def load(path: Path, dtype: torch.dtype = torch.float32):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


@torch.inference_mode()
def logprobs(model, tokens: list[int]) -> torch.Tensor:
    """float32 [T - 1]: of each token after the first."""
    logs = model(torch.tensor([tokens])).logits[0, :-1].float().log_softmax(-1)
    return logs.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


def test_it_speaks_nearly_as_well_as_the_dense_target_and_needs_its_experts(moe, target, tokens):
    model = load(moe)
    dense, whole = -logprobs(load(target), tokens).mean(), -logprobs(model, tokens).mean()
    layers = routed_layers(model)
    half = {layer.index: layer.top_k // 2 for layer in layers}
    with reduced(layers, half, torch.ones(1, len(tokens), dtype=torch.bool)):
        cut = -logprobs(model, tokens).mean()
    assert (whole - dense).exp() < 1.25  # of one short text; the held-out perplexity is in its provenance
    assert (cut - whole).exp() > 1.15


@pytest.fixture(scope="module")
def served(moe, tokens, tmp_path_factory) -> Path:
    """What vLLM says to the text in each dtype."""
    folder = tmp_path_factory.mktemp("logprobs")
    (folder / "tokens.json").write_text(json.dumps(tokens))
    subprocess.run([sys.executable, SCRIPT, moe, folder, *TOLERANCES], check=True, timeout=300)
    return folder


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items())
def test_vllm_and_transformers_agree(moe, tokens, served, dtype, tolerance):
    found = torch.tensor(json.loads((served / f"{dtype}.json").read_text()))
    expected = logprobs(load(moe, getattr(torch, dtype)), tokens)
    gaps = found - expected
    assert gaps.abs().mean() < tolerance
    assert gaps.mean().abs() < tolerance / 4
    if dtype == "float32":
        assert gaps.abs().max() < tolerance
