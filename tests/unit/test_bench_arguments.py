"""What a user may type, and what is told where it is wrong."""

import pytest
from typer.testing import CliRunner

from vllm_edsd.bench.arguments import parse_drafters, sort_out
from vllm_edsd.bench.arms import make_arms
from vllm_edsd.bench.run import split
from vllm_edsd.bench.target import find_target
from vllm_edsd.cli.main import app
from vllm_edsd.errors import UserError


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
        make_arms(["edsd"], 5, {"edsd": "no-such-drafter"}, None)
    with pytest.raises(UserError, match="'ngram' takes no drafter"):
        make_arms(["none"], 5, {"ngram": "x"}, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"arm suffix needs package arctic-inference.*pip install"):
        make_arms(["suffix"], 5, {}, None)


def test_native_arms_draft_as_many_tokens_as_asked():
    none, ngram = make_arms(["none", "ngram"], 3, {}, None)
    assert none.arguments == ()
    assert '"num_speculative_tokens": 3' in ngram.arguments[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-tokens", "0"], "--num-tokens 0 is out of range; give 1 or more"),
        (["--max-tokens", "0"], "--max-tokens 0"),
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


@pytest.mark.parametrize(
    ("count", "concurrency", "sizes"), [(3, 1, [3]), (8, 1, [4, 4]), (80, 16, [40, 40]), (10, 1, [5, 5])]
)
def test_blocks_are_even_and_keep_the_order(count, concurrency, sizes):
    blocks = split(list(range(count)), concurrency)
    assert [len(block) for block in blocks] == sizes
    assert [one for block in blocks for one in block] == list(range(count))
