"""Policy evict on vLLM's model runner V2, run on a CPU with its kernels interpreted: the text stays the target's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("verify_v2.py")
ACCEPTED, PREEMPTED = "vllm:spec_decode_num_accepted_tokens", "vllm:num_preemptions"


@pytest.fixture(scope="module")
def found(target, tmp_path_factory):
    out = tmp_path_factory.mktemp("v2") / "out.json"
    command = [sys.executable, str(SCRIPT), str(target), "smollm2-edsd", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_the_engine_was_put_to_the_test(found):
    """Otherwise the comparisons below would say little."""
    for way in ("on", "whims"):
        budgets = found[way]["budgets"]
        assert any(0 < admitted < drafted for drafted, admitted in budgets)
        assert any(0 < admitted == drafted for drafted, admitted in budgets)
        assert found[way]["counts"][ACCEPTED] > 15
    assert sum(admitted for _, admitted in found["off"]["budgets"][5:]) == 0
    assert all(found[way]["counts"][PREEMPTED] > 0 for way in ("off", "on", "whims"))


@pytest.mark.parametrize("way", ["on", "whims"])
def test_greedy_answers_are_those_of_plain_decoding(found, way):
    assert found[way]["answers"] == found["off"]["answers"]


def test_the_control_fails(found):
    """A target that accepts whatever it verifies writes something else."""
    assert found["control"]["answers"] != found["off"]["answers"]


def test_costs_are_profiled_with_tokens_that_count(found):
    """vLLM 0.32.0 marks them all as padding, which MoE layers skip, and gives them one id."""
    sizes = [size for size, *_ in found["priced"]["ours samples"]]
    assert sizes and found["priced"]["vllm"] == [[0, 1]] * len(sizes)
    for size, (counting, different) in zip(sizes, found["priced"]["ours"], strict=True):
        assert counting == size and different > size / 2


def test_what_steps_took_is_learnt(found):
    """Both ways, with what they emitted, and the costs of those that drafted."""
    learnt = found["whims"]["learnt"]
    assert {drafts for drafts, *_ in learnt} == {True, False}
    assert all(0 < seconds < 60 and 1 <= requests <= emitted for _, emitted, requests, _, seconds in learnt)
    assert all(requests == tokens for drafts, _, requests, tokens, _ in learnt if not drafts)
    assert any(emitted > requests for drafts, emitted, requests, *_ in learnt if drafts)
    assert all(refits > 0 for refits in found["whims"]["refits"])
    assert found["off"]["refits"] == [0, 0]  # resting steps say nothing of what drafting costs


def test_what_was_cut_is_counted(found):
    drafted, cut = (after - before for before, after in zip(found["off"]["tokens"], found["on"]["tokens"], strict=True))
    budgets = found["on"]["budgets"]
    assert 0 < cut < drafted <= sum(scheduled for scheduled, _ in budgets)
    verified = [(scheduled, admitted) for scheduled, admitted in budgets if admitted]
    assert cut >= sum(scheduled - admitted for scheduled, admitted in verified)


def test_estimates_are_vllms(found):
    """Tokens, odds, chances: from one reading of the draft vocabulary as from vLLM's two of the target's."""
    assert sum(rows for rows, _ in found["estimates"]) > 60
    assert max(apart for _, apart in found["estimates"]) < 1e-3
