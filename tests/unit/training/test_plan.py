import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from typer.testing import CliRunner

from vllm_edsd.cli.main import app
from vllm_edsd.drafters.checkpoint import version
from vllm_edsd.errors import UserError
from vllm_edsd.fingerprint import fingerprint
from vllm_edsd.policy.profile import Cell, CostProfile
from vllm_edsd.training.finished import Finished, read_runs
from vllm_edsd.training.planner import Costs, plan
from vllm_edsd.training.scaling import Law, fit

SHARES = np.array([0.3, 0.1, 0.03])  # at a million tokens and parameters
TOKENS_SLOPE, SIZE_SLOPE = np.array([0.05, 0.03, 0.01]), np.array([0.04, 0.01, 0.005])
CHEAP = Costs(plain=0.04, verify=0.001, draft={2_000_000: 0.002})


def finished(tokens, parameters, noise=0.0, seed=0, kind="edsd"):
    shares = SHARES + TOKENS_SLOPE * np.log(tokens / 1e6) + SIZE_SLOPE * np.log(parameters / 1e6)
    shares = shares + noise * np.random.default_rng(seed).standard_normal(3)
    return Finished(f"{kind}-{tokens}-{parameters}", kind, "t", parameters, tokens, shares.tolist(), "text", "mark")


def grid(noise=0.0, seed=0, kind="edsd"):
    """Three lengths of training, two sizes, two seeds."""
    places = itertools.product((10**6, 2 * 10**6, 4 * 10**6), (10**6, 3 * 10**6), (0, 1))
    return [finished(*place[:2], noise, (seed, *place), kind) for place in places]


def test_the_law_that_made_the_runs_is_found():
    law = fit(grid(), seed=0)
    assert isinstance(law, Law)
    lengths, draws = law.lengths(8 * 10**6, 2 * 10**6)
    expected = 1 + (SHARES + TOKENS_SLOPE * np.log(8) + SIZE_SLOPE * np.log(2)).cumsum()
    np.testing.assert_allclose(lengths, expected)
    np.testing.assert_allclose(draws.std(0), 0, atol=1e-9)
    assert law.per_doubling("tokens")["mean"] == pytest.approx(0.09 * np.log(2), abs=1e-4)
    assert law.per_doubling("parameters")["mean"] == pytest.approx(0.055 * np.log(2), abs=1e-4)
    more = [law.lengths(tokens, 10**6)[0][-1] for tokens in (10**6, 2 * 10**6, 10**7)]
    assert more == sorted(more)


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth = 0.09 * np.log(2)
    hits = 0
    for seed in range(200):
        found = fit(grid(noise=0.01, seed=seed), seed).per_doubling("tokens")
        hits += found["low"] <= truth <= found["high"]
    assert 180 <= hits <= 198


def test_lengths_stay_within_what_k_drafts_can_give():
    law = fit(grid(), seed=0)
    assert (law.lengths(1e60, 10**6)[0] == [2, 3, 4]).all()
    assert (law.lengths(1, 1)[0] >= 1).all()


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        ([finished(10**6, 10**6)], "nothing to compare"),
        ([finished(10**6, 10**6), finished(2 * 10**6, 10**6)], "too few .* train 1 more"),
        ([finished(10**6, 10**6), finished(2 * 10**6, 2 * 10**6), finished(4 * 10**6, 4 * 10**6)], "grow together"),
    ],
    ids=["one", "two", "collinear"],
)
def test_says_when_the_runs_cannot_tell(runs, why):
    result = plan(runs, {"edsd": CHEAP}, None, 0)
    assert result["best"] is None and result["options"] == [] and result["laws"] == {"edsd": None}
    (note,) = result["notes"]
    assert note.startswith("edsd: cannot tell")
    assert re.search(why, note)


def test_noise_that_hides_an_effect_is_called_so():
    notes = plan(grid(noise=1.0, seed=1), {}, None, 0)["notes"]
    assert sum("cannot tell whether it helps" in note for note in notes) == 2
    assert any("give one with --cost" in note for note in notes)
    notes = plan(grid(noise=0.001), {}, None, 0)["notes"]
    assert sum(note.endswith("helps") for note in notes) == 2


def test_cheap_drafts_pay_and_dear_ones_lose():
    runs = grid(noise=0.002)
    cheap = plan(runs, {"edsd": CHEAP}, None, 0)
    assert cheap["best"]["verdict"] == "pays" and cheap["best"]["speedup"]["low"] > 1
    step = 0.04 + cheap["best"]["num_tokens"] * (0.001 + 0.001 * cheap["best"]["parameters"] / 1e6)
    expected = cheap["best"]["acceptance_length"]["mean"] * 0.04 / step
    assert cheap["best"]["speedup"]["mean"] == pytest.approx(expected, abs=1e-3)
    assert any("a straight line is assumed for 1.00M, 3.00M" in note for note in cheap["notes"])
    dear = plan(runs, {"edsd": Costs(plain=0.04, verify=0.03, draft={10**6: 0.03, 3 * 10**6: 0.09})}, None, 0)
    assert {option["verdict"] for option in dear["options"]} == {"loses"}
    # With nothing to pay for it, the longest draft of the largest is best.
    free = plan(runs, {"edsd": Costs(plain=0.04, verify=0, draft={10**6: 0, 3 * 10**6: 0})}, None, 0)
    assert (free["best"]["num_tokens"], free["best"]["parameters"]) == (3, 3 * 10**6)


def test_names_the_options_that_it_cannot_tell_from_the_best():
    same = Costs(plain=0.04, verify=0.0, draft={10**6: 0.001, 3 * 10**6: 0.001})
    runs = grid(noise=0.05) + grid(noise=0.05, seed=5, kind="eagle3")
    noisy = plan(runs, {"edsd": same, "eagle3": same}, None, 0)
    assert {rival["kind"] for rival in noisy["rivals"]} == {"edsd", "eagle3"}
    assert plan(grid(noise=1e-6), {"edsd": same}, None, 0)["rivals"] == []


def test_warns_of_guesses_and_of_runs_judged_on_different_text():
    runs = grid(noise=0.01)
    other = [dataclasses.replace(runs[0], judged_on="other"), *runs[1:]]
    assert any("different held-out answers" in note for note in plan(other, {}, None, 0)["notes"])
    assert any("a guess" in note for note in plan(runs, {}, 10**8, 0)["notes"])


@pytest.fixture
def exported(make_drafter, tmp_path):
    """Exports of five runs of two sizes."""
    folders = []
    for number, (tokens, size) in enumerate([(1, 1), (2, 1), (4, 1), (1, 3), (4, 3)]):
        run = finished(tokens * 10**6, size * 10**6, 0.002, number)
        folder = make_drafter(f"run-{number}", intermediate_size=size)
        made = {
            "recipe": {"drafter": "edsd", "target_name": "tiny", "epochs": 2.0, "held_out": 4, "seed": 0},
            "data": {"fingerprint": "sha256:0", "answer_tokens": tokens * 5 * 10**5},
            "parameters": size * 10**6,
            "held_out": {"per_position": run.per_position},
        }
        (folder / "provenance.json").write_text(json.dumps(made))
        folders.append(folder)
    return folders


def command(*arguments):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def profile(folder, path):
    cells = [Cell(requests=1, drafts=1, drafted=1, steps=9, context=300, ms=40)]
    marks = fingerprint(None, folder, None)
    CostProfile(fingerprint=marks, coefficients=[0.03, 0.01, 0.001, 0.002, 0, 0], error=0.1, cells=cells).write(path)
    return path


def test_from_exports_and_a_profile_to_a_recommendation(exported, tmp_path):
    costs = profile(exported[0], tmp_path / "costs.json")
    done = command(*exported, "--cost", costs, "--json", tmp_path / "plan.json", "--plot", tmp_path / "plan.png")
    assert done.exit_code == 0, done.exception
    assert "take edsd of" in done.stdout
    result = json.loads((tmp_path / "plan.json").read_text())
    assert result["tokens"] == 4 * 10**6 and len(result["options"]) == 6
    assert result["best"] == result["options"][0] and "draws" not in result["best"]
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_evaluations_replace_held_out_figures_and_must_be_alike(exported, tmp_path):
    def evaluation(folder, name, **changes):
        environment = {"temperature": 0.0, "drafters": {"d": {"version": version(folder)}}} | changes
        path = tmp_path / name
        path.write_text(json.dumps({"per_position": [{"mean": 0.5}], "environment": environment}))
        return path

    one = evaluation(exported[0], "one.json")
    assert read_runs([str(exported[0])], [one])[0].per_position == [0.5]
    weights = exported[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b"\0", b"\1", 1))
    with pytest.raises(UserError, match=r"no --eval file is of drafter .*run-1"):
        read_runs([str(exported[0]), str(exported[1])], [one])
    two = evaluation(exported[1], "two.json", temperature=0.8)
    with pytest.raises(UserError, match=r"two\.json has temperature 0\.8, but .*one\.json has 0\.0"):
        read_runs([str(exported[0]), str(exported[1])], [one, two])
    with pytest.raises(UserError, match=r"is no result of `vllm-edsd eval`"):
        read_runs([str(exported[0])], [exported[0] / "config.json"])


def test_what_is_no_run_or_anothers_profile_is_refused(exported, make_drafter, tmp_path):
    bare = make_drafter("bare")
    assert "cannot read" in str(command(bare).exception)
    (bare / "provenance.json").write_text('{"trimmed_from": {}}')
    assert "has no recipe" in str(command(bare).exception)
    costs = profile(bare, tmp_path / "costs.json")
    assert "none of the runs given" in str(command(exported[0], "--cost", costs).exception)
