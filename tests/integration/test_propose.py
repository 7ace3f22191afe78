"""Model-free proposers through a real engine, in float32: the docs' own and ours write what plain decoding writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("propose.py")
DRAFTED, ACCEPTED, PREEMPTED = (
    f"vllm:{name}" for name in ("spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens", "num_preemptions")
)


@pytest.fixture(scope="module")
def answered(tiny_target, extending, tmp_path_factory):
    """Answers and counters by proposer; each engine runs once."""
    folder, found = tmp_path_factory.mktemp("propose"), {}

    def answer(proposer):
        if proposer not in found:
            out = folder / f"{proposer}.json"
            command = [sys.executable, str(SCRIPT), str(tiny_target), proposer, str(out)]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(extending)})
            assert done.returncode == 0, done.stderr[-3000:]
            found[proposer] = json.loads(out.read_text())
        return found[proposer]

    return answer


@pytest.mark.parametrize("proposer", ["echo", "trigram"])
def test_greedy_answers_are_those_of_plain_decoding(proposer, answered):
    plain, found = answered("none"), answered(proposer)
    assert found["answers"] == plain["answers"]
    assert DRAFTED not in plain["counts"]
    assert found["counts"][DRAFTED] > 200
    assert found["counts"][ACCEPTED] > 50
    assert min(plain["counts"][PREEMPTED], found["counts"][PREEMPTED]) > 0
