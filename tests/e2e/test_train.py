"""From prompts to a served drafter by the README's commands, at the smallest size.

In float32: bfloat16 takes eight times as long where the processor has no instructions for it.
"""

import asyncio
import json
import subprocess
import sys

import pytest
import yaml

from vllm_edsd.bench.load import MODEL, Load
from vllm_edsd.engine.server import serve
from vllm_edsd.prompts import Prompt
from vllm_edsd.training.samples import read_shard, shards

pytestmark = pytest.mark.e2e


def edsd(*arguments):
    done = subprocess.run([sys.executable, "-m", "vllm_edsd.cli.main", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_regen_train_serve(target, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    questions = [
        f"Name {count} animals that live in {place}." for count in (2, 3, 4) for place in ("rivers", "forests", "deserts")
    ]
    prompts.write_text("\n".join(json.dumps({"id": str(n), "turns": [text]}) for n, text in enumerate(questions)))
    options = ("--max-tokens", 24, "--max-prompt-tokens", 104, "--shard-size", 5, "--dtype", "float32")
    edsd("regen", target, "--prompts", prompts, "--out", tmp_path / "data", *options, "--ray", 2)
    answered = [len(read_shard(path)) for path in shards(tmp_path / "data")]
    assert answered == [5, 4]
    recipe = {
        "drafter": "edsd",
        "target": str(target),
        "target_name": "smollm2-135m-instruct",
        "data": str(tmp_path / "data"),
        "features": str(tmp_path / "features"),
        "feature_layers": [19, 28],
        "layers": [19, 28],
        "draft_vocab_size": 256,
        "max_depth": 2,
        "precision": "float32",
        "epochs": 1,
        "held_out": 2,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    edsd("train", tmp_path / "recipe.yaml", "--out", tmp_path / "drafter")
    provenance = json.loads((tmp_path / "drafter" / "provenance.json").read_text())
    assert provenance["data"]["made_with"]["temperatures"] == [0.0, 0.0, 0.8]
    arguments = ["--served-model-name", MODEL, "--enforce-eager", "--max-model-len", "256"]
    arguments += ["--kv-cache-memory-bytes", str(1 << 28), "--dtype", "float32", "--edsd", str(tmp_path / "drafter")]
    with (
        serve(str(target), arguments, tmp_path / "log") as server,
        asyncio.Runner() as runner,
        Load(runner, server.url, max_tokens=16, temperature=0) as load,
    ):
        (reply,) = load.send([Prompt(id="france", turns=["What is the capital of France?"])], 1)
        assert (reply.error, reply.text) == (None, "The capital of France is Paris.")
        assert server.counters().drafts > 0
