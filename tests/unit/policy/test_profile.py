import json

import numpy as np
import pytest

from vllm_edsd.errors import UserError
from vllm_edsd.policy import registry
from vllm_edsd.policy.base import Drafting, Step
from vllm_edsd.policy.cost import CostModel, Load
from vllm_edsd.policy.fixed import Fixed
from vllm_edsd.policy.profile import CostProfile
from vllm_edsd.policy.record import Recorder, steps
from vllm_edsd.policy.sweep import HOLD

TRUTH = np.array([0.050, 0.002, 0.003, 0.004, 0.001, 0.005])
MARKS = {"target": "abc", "machine": "here, 2 cores"}


def swept(count=600, noise=0.02):
    """The steps of a simulated server under policy sweep, one and four requests in turn."""
    random, found = np.random.default_rng(0), []
    for requests in (1, 4):
        policy, kept = registry.make("sweep", 6), 0
        names = [f"r{number}" for number in range(requests)]
        for _ in range(count):
            drafting = Drafting.begin(names)
            if policy.start(names):
                while True:
                    drafting.add(np.full(requests, 0.5), np.ones(requests))
                    if drafting.drafted == 6 or not policy.proceed(drafting):
                        break
            load = Load(requests, 300 * requests, kept * requests, drafting.drafted)
            seconds = float(load.row() @ TRUTH) * random.normal(1, noise)
            found.append(Step(requests, 300 * requests, requests * (1 + kept), drafting.drafted, requests, seconds))
            kept = int(policy.cut(drafting)[0]) if drafting.drafted else 0
    return found


def test_a_sweep_meets_every_length():
    kinds = {(step.tokens - step.requests, step.drafted) for step in swept() if step.requests == 1}
    assert {drafted for _, drafted in kinds} == set(range(7)) and {drafts for drafts, _ in kinds} == set(range(7))
    assert HOLD > 1


def test_a_profile_predicts_what_it_was_fitted_to(tmp_path):
    profile = CostProfile.fit(swept(), MARKS)
    assert profile.error < 0.03
    profile.write(tmp_path / "profile.json")
    again = CostProfile.read(tmp_path / "profile.json", MARKS)
    assert again == profile
    cost = CostModel(np.array(again.coefficients))
    for load in (Load(1, 300, 0, 0), Load(1, 300, 3, 5), Load(4, 1200, 8, 2)):
        assert cost.seconds(load) == pytest.approx(float(load.row() @ TRUTH), rel=0.05)


def test_evict_starts_from_a_profile_and_goes_on_learning():
    guarded = registry.make("evict", 6, TRUTH.tolist())
    cost = guarded.policy.cost
    assert cost.seconds(Load(1, 300, 2, 2)) == pytest.approx(float(Load(1, 300, 2, 2).row() @ TRUTH))
    for _ in range(400):
        guarded.timed(Step(1, 300, 3, 2, 1, 0.2))
    assert cost.seconds(Load(1, 300, 2, 2)) == pytest.approx(0.2, rel=0.05)


def test_too_few_steps_are_refused():
    with pytest.raises(UserError, match="12 measured steps are too few"):
        CostProfile.fit(swept()[:12], MARKS)


@pytest.mark.parametrize(
    ("name", "value"), [("target", "other"), ("machine", "there, 64 cores"), ("vllm", "0.33.0")], ids=str
)
def test_a_foreign_profile_is_refused_with_the_reason(name, value, tmp_path):
    CostProfile.fit(swept(), MARKS).write(tmp_path / "profile.json")
    with pytest.raises(UserError, match=rf"another {name} \(.*now {value}"):
        CostProfile.read(tmp_path / "profile.json", {**MARKS, name: value})


def test_a_missing_and_a_damaged_profile_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist; make one with: vllm-edsd profile"):
        CostProfile.read(tmp_path / "none.json", MARKS)
    (tmp_path / "bad.json").write_text('{"fingerprint": {}')
    with pytest.raises(UserError, match=r"bad\.json is no cost profile"):
        CostProfile.read(tmp_path / "bad.json", MARKS)


def test_a_record_gives_the_steps_back(tmp_path):
    recorder = Recorder(Fixed(2), tmp_path / "steps.jsonl")
    told = [Step(1, 100, 2, 1, 2, 0.05), Step(2, 250, 6, 2, 3, 0.07)]
    for step in told:
        recorder.timed(step)
    assert list(steps(tmp_path / "steps.jsonl")) == told
    assert json.loads((tmp_path / "steps.jsonl").read_text().splitlines()[0])["seconds"] == 0.05
