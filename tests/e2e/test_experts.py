"""A real server with `--edsd.experts`, over HTTP: it says that it is lossy and how many experts it used."""

import time

import httpx
import pytest
import torch
import transformers
from prometheus_client.parser import text_string_to_metric_families

from vllm_edsd.engine.server import serve
from vllm_edsd.experts import plan as plans
from vllm_edsd.experts.hook import Hook
from vllm_edsd.fingerprint import model_fingerprint
from vllm_edsd.observability.catalog import COMMON, EXPERTS, METRICS

pytestmark = pytest.mark.e2e

COUNTS = {0: 1, 1: 4, 2: 2}
ARGUMENTS = ["--served-model-name", "tiny", "--skip-tokenizer-init", "--dtype", "float32", "--enforce-eager"]
LIMITS = ["--max-model-len", "256", "--kv-cache-memory-bytes", str(1 << 26), "--no-enable-prefix-caching"]


@pytest.fixture
def target(tmp_path):
    """A random MoE, which needs no tokenizer: it is asked in tokens."""
    config = transformers.Qwen2MoeConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=128,
        max_position_embeddings=512,
        initializer_range=0.3,
        num_experts=8,
        num_experts_per_tok=4,
        moe_intermediate_size=32,
        eos_token_id=1,
        shared_expert_intermediate_size=64,
        bos_token_id=0,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    transformers.Qwen2MoeForCausalLM(config).save_pretrained(tmp_path / "target")
    return tmp_path / "target"


@pytest.fixture
def plan(target, tmp_path):
    fitting = {"model": model_fingerprint(target), "mode": "prefill", "num_hidden_layers": 3, "top_k": 4}
    place = plans.HookPlace(layers=(0,), rank=4)
    hook = Hook(torch.zeros(4, 64), torch.zeros(64, 4))
    plans.write(plans.Plan(**fitting, experts=COUNTS, hook=place), {0: hook}, tmp_path / "half")
    return tmp_path / "half"


def test_a_lossy_server_says_so_and_counts(target, plan, tmp_path):
    with serve(str(target), [*ARGUMENTS, *LIMITS, "--edsd.experts", str(plan)], tmp_path / "log") as server:
        asked = {"model": "tiny", "max_tokens": 5, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        for length in (40, 7):
            prompt = {"prompt": list(range(2, 2 + length)), "detokenize": False}
            answer = httpx.post(f"{server.url}/v1/completions", json=asked | prompt, timeout=60)
            assert answer.status_code == 200, answer.text
        time.sleep(2.5)  # until the worker has written
        page = server.get("/metrics")
    families = {family.name: family.samples for family in text_string_to_metric_families(page)}
    ours = {metric.name: metric for metric in METRICS if metric.place == EXPERTS}
    for name, metric in ours.items():
        assert {frozenset(sample.labels) for sample in families[name]} == {frozenset((*COMMON, *metric.labels))}
    assert not any(name.startswith("edsd:") and "accept" in name for name, samples in families.items() if samples)

    (info,) = families["edsd:lossy_experts_info"]
    common = {"model_name": "tiny", "engine": "0"}
    about = {"plan": "half", "mode": "prefill", "version": plans.fingerprint(plan)}
    assert (info.labels, info.value) == (common | about, 1)
    used = {(s.labels["layer"], s.labels["routing"]): s.value for s in families["edsd:activated_experts"]}
    # The last token of a prompt counts as its answer's; the last of an answer is computed by nothing.
    prompts, answers = 39 + 6, 2 * 5
    for layer, count in COUNTS.items():
        assert used[str(layer), "model"] == 4 * (prompts + answers)
        assert used[str(layer), "served"] == count * prompts + 4 * answers
    told = [line for line in (tmp_path / "log").read_text().splitlines() if "LOSSY" in line]
    assert len(told) == 1
    assert f"by plan {plan} this target uses 58% of its experts per token for the prompts' tokens but the last" in told[0]
