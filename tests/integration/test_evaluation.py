"""The acceptance length without a server is the one that vLLM counts, in float32."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_edsd.bench.progress import Progress
from vllm_edsd.demo import demo_prompts
from vllm_edsd.evaluation.drafters import folders
from vllm_edsd.evaluation.run import EvalOptions, Run

SCRIPT = Path(__file__).with_name("served_acceptance.py")
DRAFTER = "smollm2-edsd"


def judged(options):
    run = Run(options, folders([DRAFTER], options.target), Progress())
    answers = run.answers()
    return answers, run.counts(answers)[DRAFTER]


def served(answers, options, folder):
    """The texts, and drafts and accepted tokens by position, of a real engine."""
    asked = folder / "asked.json"
    sampling = {name: getattr(options, name) for name in ("num_tokens", "max_tokens", "temperature", "draft_sample_method")}
    asked.write_text(json.dumps({"prompts": [answer.question.tokens for answer in answers], **sampling}))
    command = [sys.executable, str(SCRIPT), str(options.target), DRAFTER, str(asked), str(folder / "said.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "said.json").read_text())
    names = ("drafts", "accepted_tokens_per_pos")
    drafts, accepted = (found["counts"][f"vllm:spec_decode_num_{name}"] for name in names)
    return found["answers"], [drafts, *accepted]


def test_greedy_texts_and_counts_are_the_served_ones(target, tmp_path):
    options = EvalOptions(target, demo_prompts(), num_tokens=4, max_tokens=48, dtype="float32")
    answers, counts = judged(options)
    texts, wanted = served(answers, options, tmp_path)
    assert [answer.tokens[len(answer.question.tokens) :][: answer.length].tolist() for answer in answers] == texts
    assert wanted[0] > 150 and wanted[4] > 0
    # Not a draft more or less here; elsewhere two of the drafter's tokens may be nearly tied.
    assert counts.sum(0) == pytest.approx(wanted, abs=2)
