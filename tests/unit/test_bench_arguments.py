"""What a user may type, and what is told where it is wrong."""

import pytest
from typer.testing import CliRunner

from vllm_edsd.bench.arguments import parse_drafters, sort_out
from vllm_edsd.bench.arms import DRAFTERS, make_arms, parse_policy
from vllm_edsd.bench.target import find_target
from vllm_edsd.cli.main import app
from vllm_edsd.errors import UserError
from vllm_edsd.policy.registry import names


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "1", "turns": ["Hello"]}\n')
    return str(file)


def test_lists_by_comma_and_by_space(tmp_path):
    found = sort_out([str(tmp_path), "edsd", "4", "16"], ["none"], ["1"])
    assert (found.target, found.arms, found.concurrency) == (str(tmp_path), ("none", "edsd"), (1, 4, 16))
    found = sort_out(["edsd"], ["none,", "ngram"], ["1,4"])
    assert (found.target, found.arms, found.concurrency) == (None, ("none", "ngram", "edsd"), (1, 4))


def test_repeated_values_count_once():
    assert sort_out([], ["none,none"], ["1", "1"]).arms == ("none",)


@pytest.mark.parametrize(
    ("positional", "arms", "concurrency", "message"),
    [
        ([], ["none,warp"], ["1"], "unknown arm 'warp'; known: none, ngram, suffix, eagle3, edsd"),
        ([], ["none"], ["0"], "--concurrency '0'"),
        ([], ["none"], ["many"], "--concurrency 'many'"),
        ([], ["none"], ["\u00b2"], "--concurrency '\u00b2'"),
        (["one", "two"], ["none"], ["1"], "one target at a time, got one, two"),
    ],
)
def test_wrong_values_are_named(positional, arms, concurrency, message):
    with pytest.raises(UserError, match=message):
        sort_out(positional, arms, concurrency)


def test_drafters_by_arm():
    assert parse_drafters(["edsd=a/b=c", "eagle3=d"]) == {"edsd": "a/b=c", "eagle3": "d"}
    for wrong in ("edsd", "edsd=", "=path"):
        with pytest.raises(UserError, match="ARM=DRAFTER"):
            parse_drafters([wrong])


def test_arms_name_what_is_missing(monkeypatch):
    with pytest.raises(UserError, match="no-such-drafter"):
        make_arms(["edsd"], 5, {"edsd": "no-such-drafter"}, None, ())
    with pytest.raises(UserError, match="'ngram' takes no drafter"):
        make_arms(["none"], 5, {"ngram": "x"}, None, ())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"arm suffix needs package arctic-inference.*pip install"):
        make_arms(["suffix"], 5, {}, None, ())


def test_native_arms_draft_as_many_tokens_as_asked():
    none, ngram = make_arms(["none", "ngram"], 3, {}, None, ())
    assert none.arguments == ()
    assert '"num_speculative_tokens": 3' in ngram.arguments[1]
    assert none.policy is ngram.policy is None
    assert (none.label, ngram.label) == ("none", "ngram")


def test_arms_with_a_drafter_come_once_for_each_policy():
    asked = ("fixed:3", "fixed:5", "evict", "fixed", "evict:5")
    made = make_arms(["none", "edsd", "eagle3", "ngram", "edsd"], 5, {}, None, asked)
    assert [(arm.name, arm.policy) for arm in made] == [
        ("none", None),
        *(("edsd", policy) for policy in ("fixed:3", "fixed:5", "evict:5")),
        *(("eagle3", policy) for policy in ("fixed:3", "fixed:5", "evict:5")),
        ("ngram", None),
    ]
    assert made[1].arguments == ("--edsd", DRAFTERS["edsd"], "--edsd.policy", "fixed", "--edsd.num-tokens", "3")
    assert made[3].arguments[-3:] == ("evict", "--edsd.num-tokens", "5")
    assert made[3].label == "edsd evict:5"
    assert len({arm.label for arm in made}) == len(made)


def test_a_policy_how_far_it_may_draft_and_what_stands_beside():
    options = ("--edsd.policy", "evict", "--edsd.num-tokens")
    assert parse_policy("evict", 6) == ("evict:6", (*options, "6"))
    assert parse_policy("evict:8", 6) == ("evict:8", (*options, "8"))
    assert parse_policy("evict:8+none", 6) == ("evict:8+none", (*options, "8", "--edsd.beside", "none"))
    assert parse_policy("evict+trigram", 6) == ("evict:6+trigram", (*options, "6", "--edsd.beside", "trigram"))


def test_an_unknown_proposer_lists_the_known():
    with pytest.raises(UserError, match=r"--policies 'evict\+tri': unknown proposer 'tri'; known: lookup, trigram, none$"):
        parse_policy("evict+tri", 6)


@pytest.mark.parametrize(
    "given", ["fixed:", "fixed:0", "fixed:-1", "fixed:x", "fixed:2.5", "fixed:3:4", "fixed:129", "fixed:\u00b2"]
)
def test_a_policy_in_another_form_is_refused(given):
    with pytest.raises(UserError, match=f"--policies {given!r} is not NAME or NAME:K"):
        parse_policy(given, 5)


@pytest.mark.parametrize("given", ["warp", "warp:3", ":3", "Fixed"])
def test_an_unknown_policy_lists_the_known(given):
    kind = given.partition(":")[0]
    with pytest.raises(UserError, match=f"--policies: unknown policy {kind!r}; known: {', '.join(names())}$"):
        make_arms(["none"], 5, {}, None, (given,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tokens", "0"], "--num-tokens 0 is out of range; give 1 to 128"),
        (["--num-tokens", "129"], "--num-tokens 129 is out of range; give 1 to 128"),
        (["--max-tokens", "0"], "--max-tokens 0 is out of range; give 1 or more"),
        (["--temperature", "-1"], "--temperature -1"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--dtype", "int3"], "--dtype 'int3'"),
        (["--limit", "0"], "limit 0"),
        (["--arms", "warp"], "unknown arm 'warp'"),
        (["/no/such/target"], "target /no/such/target does not exist"),
        (["--drafter", "edsd"], "--drafter 'edsd'"),
    ],
)
def test_command_tells_one_mistake(prompts, arguments, message):
    result = CliRunner().invoke(app, ["bench", "--prompts", prompts, *arguments])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


@pytest.fixture
def handed_over(monkeypatch):
    """The options that a run would have been started with."""
    found = []

    def stop(options, progress):
        found.append(options)
        raise UserError("far enough")

    monkeypatch.setattr("vllm_edsd.bench.run.run_bench", stop)
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ("evict",)),
        (["--policies", "fixed:3,fixed:5,evict"], ("fixed:3", "fixed:5", "evict")),
        (["--policies", "fixed:3 evict", "--policies", "bandit"], ("fixed:3", "evict", "bandit")),
        (["--policies", ""], ("evict",)),
    ],
    ids=["default", "commas", "spaces and repeats", "empty"],
)
def test_policies_of_the_command(prompts, make_target, handed_over, given, expected):
    CliRunner().invoke(app, ["bench", str(make_target()), "--prompts", prompts, *given])
    assert [options.policies for options in handed_over] == [expected]


def test_command_tells_a_wrong_policy_before_anything_is_started(prompts, make_target):
    result = CliRunner().invoke(app, ["bench", str(make_target()), "--prompts", prompts, "--policies", "fixed:3,warp"])
    assert isinstance(result.exception, UserError)
    assert "unknown policy 'warp'" in str(result.exception)


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ('{"id": "1"}\n', ":1: field 'turns'"), ("{\n", ":1: not valid JSON")]
)
def test_command_refuses_bad_prompt_files(tmp_path, text, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    result = CliRunner().invoke(app, ["bench", "--prompts", str(file)])
    assert message in str(result.exception)


def test_a_directory_without_a_checkpoint_is_no_target(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        find_target(str(tmp_path), print)
