"""Model-free proposers through a real engine, in float32: the docs' own and ours write what plain decoding writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("propose.py")
PROPOSERS = ("echo", "trigram")
DRAFTED, ACCEPTED, PREEMPTED = (
    f"vllm:{name}" for name in ("spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens", "num_preemptions")
)


@pytest.fixture(scope="module")
def answered(tiny_target, extending, tmp_path_factory):
    """Answers and counters by proposer."""
    folder = tmp_path_factory.mktemp("propose")
    command = [sys.executable, str(SCRIPT), str(tiny_target), str(folder), "none", *PROPOSERS]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(extending)})
    assert done.returncode == 0, done.stderr[-3000:]
    return {proposer: json.loads((folder / f"{proposer}.json").read_text()) for proposer in ("none", *PROPOSERS)}


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_greedy_answers_are_those_of_plain_decoding(proposer, answered):
    plain, found = answered["none"], answered[proposer]
    assert found["answers"] == plain["answers"]
    assert DRAFTED not in plain["counts"]
    assert found["counts"][DRAFTED] > 200
    assert found["counts"][ACCEPTED] > 50
    assert min(plain["counts"][PREEMPTED], found["counts"][PREEMPTED]) > 0
