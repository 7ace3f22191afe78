"""Drafts of changing length through a real engine, in float32: the text stays what plain decoding writes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_edsd.policy import registry

SCRIPT = Path(__file__).with_name("adapt.py")
COUNTS = ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens", "vllm:num_preemptions")


@pytest.fixture(scope="module")
def found(target, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapt") / "out.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(target), "smollm2-eagle3", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()) | {"log": done.stdout + done.stderr}


def test_the_engine_was_put_to_the_test(found):
    """Otherwise the comparisons below would say little."""
    drafted, accepted, preempted = ({name: result[count] for name, result in found["results"].items()} for count in COUNTS)
    assert drafted["off"] == drafted["not-a-number"] == 0
    assert all(drafted[name] > 50 for name in ("chaos", "copies", "fixed", "bandit")) and drafted["evict"] > 10
    assert accepted["chaos"] > 20 and accepted["fixed"] > 100
    assert all(count > 0 for count in preempted.values())


@pytest.mark.parametrize("policy", ["chaos", "alone", "copies", "not-a-number", "evict+lookup", *registry.OURS])
def test_greedy_answers_are_those_of_plain_decoding(found, policy):
    assert found["results"][policy]["answers"] == found["results"]["off"]["answers"]


def test_a_policy_hears_what_the_drafters_reading_takes(found):
    """Of prompts only where a resting drafter does not read them anyway."""
    chaos, alone = found["results"]["chaos"], found["results"]["alone"]
    assert chaos["later"] == 0 and chaos["now"] > 0
    assert alone["later"] > 0 and alone["now"] > 0


def test_a_drafter_gone_wrong_is_logged_with_the_request(found):
    told = re.findall(r"WARNING .*request (\S+): the drafter gave NaN", found["log"])
    assert 0 < len(told) == len(set(told)) < 12  # as many as the limit lets through of 12 requests


def differences(steady, other):
    """How much the drafter's probabilities differ where both drafted after the same text, up to the first other token."""
    for place in steady.keys() & other.keys():
        for token, same, chance, again in zip(
            steady[place][0], other[place][0], steady[place][1], other[place][1], strict=False
        ):
            yield abs(chance - again)
            if token != same:
                break


# Within an answer, and from the prompt on, which is read at once or, where nobody shares it, with what follows; with how
# many drafts there must at least be to compare, and with what.
PAUSES = {"chaos": (20, "fixed"), "copies": (5, "fixed"), "late": (5, "fixed"), "alone": (5, "fixed-long")}
CONTROLLED = ("chaos", "late", "alone")


@pytest.mark.parametrize("pause", PAUSES)
def test_after_a_pause_the_drafter_drafts_as_if_it_had_read_along(found, pause):
    least, steady = PAUSES[pause]
    caught_up = list(differences(found["drafts"][steady], found["drafts"][pause]))
    assert len(caught_up) > least and max(caught_up) < 1e-3


@pytest.mark.parametrize("pause", CONTROLLED)
def test_the_control_fails(found, pause):
    """Without what is read in between the drafter's cache has holes, and it tells."""
    assert max(differences(found["drafts"][PAUSES[pause][1]], found["drafts"][f"{pause}-control"])) > 0.05
