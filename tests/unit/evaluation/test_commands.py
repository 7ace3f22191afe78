"""`vllm-edsd eval` and `vllm-edsd robustness` from the command line to their files."""

import json

import pytest
from typer.testing import CliRunner

from vllm_edsd.cli.main import app
from vllm_edsd.errors import UserError


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"id": n, "turns": [f"w{n + 9} w{n + 40}"], "category": "even" if n % 2 == 0 else "odd"} for n in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def systems(tmp_path):
    file = tmp_path / "systems.jsonl"
    file.write_text('{"system": "w77 w78 w79"}\n{"system": "w80"}\n')
    return file


@pytest.fixture(autouse=True)
def stays(monkeypatch):
    """A command started as a script starts itself again on CPU, which would end this process."""
    monkeypatch.setattr("sys.argv", ["main.py"])


def call(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_eval_writes_what_it_shows(chat_target, tiny_drafter, prompts, tmp_path):
    common = ("eval", "--drafter", tiny_drafter, "--target", chat_target, "--prompts", prompts, "--dtype", "float32")
    common = (*common, "--num-tokens", 3, "--max-tokens", 10, "--answers", tmp_path / "answers.safetensors")
    first, again = (call(*common, "--json", tmp_path / name) for name in ("first.json", "again.json"))
    assert (first.exit_code, again.exit_code) == (0, 0)
    found, cached = (json.loads((tmp_path / name).read_text()) for name in ("first.json", "again.json"))
    length = found["acceptance_length"]
    assert next(iter(found)) == "acceptance_length" and 1 <= length["low"] <= length["mean"] <= length["high"] <= 4
    assert f"{length['mean']:.3f}" in first.stdout
    assert {name: row["prompts"] for name, row in found["categories"].items()} == {"even": 3, "odd": 3}
    assert length["mean"] == pytest.approx(1 + sum(share["mean"] for share in found["per_position"]), abs=1e-3)
    assert found["counts"]["prompts"] == 6 and found["counts"]["answer_tokens"] == 60
    environment = found["environment"]
    assert environment["num_tokens"] == 3 and environment["seeds"] == {"answers": 0, "bootstrap": 0}
    assert {key: found[key] for key in found if key != "environment"} == {
        key: cached[key] for key in cached if key != "environment"
    }


def test_eval_of_sampled_drafts(chat_target, tiny_drafter, prompts, tmp_path):
    common = ("eval", "--drafter", tiny_drafter, "--target", chat_target, "--prompts", prompts, "--dtype", "float32")
    sampled = ("--temperature", 1.5, "--draft-sample-method", "probabilistic", "--max-tokens", 10)
    assert call(*common, *sampled, "--json", tmp_path / "out.json").exit_code == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert 1 < found["acceptance_length"]["mean"] < 6
    assert found["counts"]["drafts"] != round(found["counts"]["drafts"])  # an expectation


def test_robustness_writes_a_file_and_a_picture(chat_target, tiny_drafter, prompts, systems, tmp_path):
    other = tmp_path / "other"
    other.symlink_to(tiny_drafter)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_drafter.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    done = call(
        *("robustness", "--drafters", f"{tiny_drafter},{copy}", "--target", chat_target, "--prompts", prompts),
        *("--systems", systems, "--limit", 4, "--max-tokens", 6, "--num-tokens", 2, "--dtype", "float32"),
        *("--json", tmp_path / "robustness.json"),
    )
    assert done.exit_code == 0, done.exception
    found = json.loads((tmp_path / "robustness.json").read_text())
    drafters = list(found["drafters"].values())
    assert drafters[0] == drafters[1]
    assert set(drafters[0]["classes"]) == {"training", "none", "paraphrase", "role", "irrelevant", "language"}
    assert found["environment"]["systems"]["classes"]["role"] == 2
    assert (tmp_path / "robustness.png").read_bytes().startswith(b"\x89PNG")
    assert "drop of" in done.stdout
    twice = call(
        *("robustness", "--drafters", f"{tiny_drafter},{other}", "--target", chat_target, "--prompts", prompts),
        *("--systems", systems),
    )
    assert isinstance(twice.exception, UserError) and "is named twice" in str(twice.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tokens", "0"], "--num-tokens 0 is out of range; give 1 or more"),
        (["--temperature", "-1"], "--temperature -1"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--limit", "0"], "limit 0"),
        (["--target", "/no/such"], "target /no/such does not exist"),
        (["--json", "/"], "cannot write /: it is a directory"),
        (["--drafter", "warp"], "drafter 'warp' is neither"),
        (["--drafter", "trigram"], "'trigram' is a model-free proposer"),
        (["--drafter", "smollm2-edsd"], "made for a target with hidden_size 576, but"),
    ],
)
def test_eval_tells_one_mistake(chat_target, prompts, arguments, message):
    given = ["eval", "--drafter", "smollm2-edsd", "--target", chat_target, "--prompts", prompts, *arguments]
    result = call(*given)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_a_drafter_that_others_exported_is_refused(make_target, make_drafter, prompts):
    result = call("eval", "--drafter", make_drafter(edsd=None), "--target", make_target(), "--prompts", prompts)
    assert isinstance(result.exception, UserError)
    assert "was not exported by `vllm-edsd train`" in str(result.exception)


def test_an_empty_prompt_file_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    result = call("eval", "--drafter", "smollm2-edsd", "--prompts", tmp_path / "empty.jsonl")
    assert "is empty" in str(result.exception)
