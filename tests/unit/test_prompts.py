import gzip
import json

import pytest

from vllm_edsd.cli.regen import gather
from vllm_edsd.errors import UserError
from vllm_edsd.prompts import Prompt, distinct, read_prompts


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_limit_is_spread_over_the_categories(tmp_path):
    rows = [{"id": f"{kind}{n}", "category": kind, "turns": ["hi"]} for kind in "abc" for n in range(5)]
    chosen = read_prompts(write(tmp_path / "p.jsonl", rows), limit=7)
    assert [prompt.id for prompt in chosen] == ["a0", "a1", "a2", "b0", "b1", "c0", "c1"]


def test_gzip_and_extra_fields(tmp_path):
    path = tmp_path / "p.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"id": 7, "turns": ["hi"], "system": "be brief", "license": "MIT"}) + "\n\n")
    (prompt,) = read_prompts(path)
    assert prompt.id == "7"
    assert [message["role"] for message in prompt.messages()] == ["system", "user"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"id": "1", "turns": ["a"]}, '{"id": "2", "turns": '], r"p\.jsonl:2: not valid JSON"),
        ([{"id": "1", "turns": []}], r"p\.jsonl:1: field 'turns'"),
        ([{"turns": ["a"]}], r"p\.jsonl:1: field 'id'"),
        (["[1]"], r"p\.jsonl:1"),
        ([], "is empty"),
    ],
)
def test_bad_files_name_their_line(lines, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_prompts(write(tmp_path / "p.jsonl", lines))


def test_missing_and_garbled_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "p.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match="not readable"):
        read_prompts(tmp_path / "p.jsonl.gz")


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_out_of_range(limit, tmp_path):
    with pytest.raises(UserError, match=f"limit {limit}"):
        read_prompts(write(tmp_path / "p.jsonl", [{"id": "1", "turns": ["a"]}]), limit)


def test_gathers_several_files_without_repeats(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(json.dumps({"id": f"a{n}", "turns": [f"Question {n}"]}) + "\n" for n in range(10)))
    second.write_text(json.dumps({"id": "b", "turns": ["question  3"]}) + "\n" + json.dumps({"id": "c", "turns": ["New"]}))
    assert [prompt.id for prompt in gather([str(first), str(second)], 0)] == [*(f"a{n}" for n in range(10)), "c"]
    sampled = gather([f"{first}:4", str(second)], 0)
    assert len(sampled) in (5, 6) and sampled == gather([f"{first}:4", str(second)], 0)
    assert {prompt.id[0] for prompt in sampled} >= {"a", "c"}


def test_a_system_prompt_makes_another_prompt():
    plain, ruled = Prompt(id="1", turns=["Hi"]), Prompt(id="2", turns=["Hi"], system="Be kind.")
    assert distinct([plain, ruled, plain]) == [plain, ruled]
