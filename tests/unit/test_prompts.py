import gzip
import json
import random

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
        ([{"id": "1", "turns": ["a"]}, {"id": "2", "turns": ["a", ""]}], r"p\.jsonl:2: field 'turns\.1': a turn is empty"),
        ([{"id": "1", "turns": [" \n"]}], r"p\.jsonl:1: field 'turns\.0': a turn is empty"),
        ([{"id": "1", "turns": [5]}], r"p\.jsonl:1: field 'turns\.0': .*string \(got '5'\)"),
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


@pytest.mark.parametrize("place", [10, 40, -9, -4], ids=["first-bits", "middle", "end", "checksum"])
def test_a_corrupt_archive_is_told(place, tmp_path):
    whole = bytearray(gzip.compress(b'{"id": "1", "turns": ["a"]}\n' + random.Random(0).randbytes(300)))
    whole[place] ^= 0xFF
    (tmp_path / "p.jsonl.gz").write_bytes(whole)
    with pytest.raises(UserError, match=r"p\.jsonl\.gz"):
        read_prompts(tmp_path / "p.jsonl.gz")


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)
    with pytest.raises(UserError, match=r"p\.jsonl is not readable: .*Permission denied"):
        read_prompts(write(tmp_path / "p.jsonl", [{"id": "1", "turns": ["a"]}]))


def test_bytes_that_are_not_utf8_name_their_line(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"id": "1", "turns": ["a"]}\n{"id": "2", "turns": ["\xe9"]}\n')
    with pytest.raises(UserError, match=r"p\.jsonl:2: not UTF-8 \(invalid continuation byte, byte 24\); mend"):
        read_prompts(tmp_path / "p.jsonl")


def test_a_byte_order_mark_and_other_line_ends_are_read(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(
        b'\xef\xbb\xbf{"id": "1", "turns": ["a\xe2\x80\xa8b"]}\r\n{"id": "2", "turns": ["c"]}\r\n'
    )
    assert [prompt.turns for prompt in read_prompts(tmp_path / "p.jsonl")] == [["a\u2028b"], ["c"]]


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


def test_no_prompts_are_refused_and_not_asked(tmp_path):
    write(tmp_path / "p.jsonl", [{"id": "1", "turns": ["a"]}])
    with pytest.raises(UserError, match=r"--prompts .*p\.jsonl:0 takes no prompts; give FILE:N with N of 1 or more"):
        gather([f"{tmp_path}/p.jsonl:0"], 0)


def test_a_system_prompt_makes_another_prompt():
    plain, ruled = Prompt(id="1", turns=["Hi"]), Prompt(id="2", turns=["Hi"], system="Be kind.")
    assert distinct([plain, ruled, plain]) == [plain, ruled]
