"""`vllm-edsd bench` through real servers: in float32, greedy answers are the same with and without a drafter."""

import json

import pytest
from typer.testing import CliRunner

from vllm_edsd.cli.main import app

pytestmark = pytest.mark.e2e

QUESTIONS = {
    "fact": "Name the four seasons and one thing that is typical of each.",
    "code": "Write a Python function that tells whether a number is prime.",
    "maths": "Anna has 12 apples, gives away 5 and buys 8 more. How many does she have? Explain each step.",
    "copy": "Repeat this sentence three times: The quick brown fox jumps over the lazy dog.",
}


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": k, "category": k, "turns": [text]}) + "\n" for k, text in QUESTIONS.items()))
    return file


def test_drafted_answers_are_identical_and_measured(target, prompts, tmp_path):
    out = tmp_path / "bench.json"
    command = [
        "bench",
        str(target),
        "--arms",
        "none",
        "edsd",
        "eagle3",
        "ngram",
        "--prompts",
        str(prompts),
        "--dtype",
        "float32",
    ]
    options = ["--concurrency", "1", "--num-tokens", "3", "--max-tokens", "48", "--enforce-eager", "--json", str(out)]
    done = CliRunner().invoke(app, [*command, *options], catch_exceptions=False)
    assert done.exit_code == 0
    result = json.loads(out.read_text())
    rows = {row["arm"]: row for row in result["arms"]}
    assert list(rows) == ["none", "edsd", "eagle3", "ngram"]
    for row in rows.values():
        assert (row["concurrency"], row["requests"], row["failed_requests"]) == (1, len(QUESTIONS), 0)
        assert row["identical_share"] == 1.0
        assert row["output_tokens_per_s"] > 0
        assert 0 < row["itl_ms"]["p50"] <= row["itl_ms"]["p99"]
        assert row["ttft_ms"]["p50"] > 0
        assert row["output_tokens"] == rows["none"]["output_tokens"]
    for name in ("edsd", "eagle3"):
        assert rows[name]["acceptance_length"] > 1
        assert len(rows[name]["per_position"]) == 3
        assert rows[name]["categories"].keys() == QUESTIONS.keys()
    assert rows["none"]["speedup"] == 1.0
    assert result["environment"]["prompts"]["file"] == "prompts.jsonl"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "edsd evict:3, concurrency 1: accepted by position" in done.output
