import gzip

import numpy
import pytest

from vllm_edsd.errors import UserError
from vllm_edsd.evaluation.robustness import result
from vllm_edsd.evaluation.systems import REFERENCE, Systems
from vllm_edsd.prompts import Prompt

PROMPTS = [Prompt(id=str(number), turns=[f"turn {number}"], system="its own") for number in range(40)]


def counts(*accepted, turns=50, noise=0.0):
    random = numpy.random.default_rng(1)
    return [numpy.stack([numpy.full(turns, 100.0), 100 * mean + noise * random.normal(size=turns)], 1) for mean in accepted]


def measured(first, second, noise=0.0):
    kinds = (REFERENCE, "role", "language")
    return {
        kind: {"a": one, "b": other}
        for kind, one, other in zip(kinds, counts(*first, noise=noise), counts(*second, noise=noise), strict=True)
    }


def test_drops_and_factors():
    found = result(measured((1.0, 0.6, 0.8), (1.0, 0.9, 0.96), noise=1), 0, {})
    a, b = (found["drafters"][name] for name in "ab")
    assert a["classes"][REFERENCE]["acceptance_length"]["mean"] == pytest.approx(2, abs=0.01)
    assert "drop" not in a["classes"][REFERENCE]
    assert a["classes"]["role"]["drop"]["mean"] == pytest.approx(0.2, abs=0.005)
    assert (a["drop"]["mean"], b["drop"]["mean"]) == (pytest.approx(0.15, abs=0.005), pytest.approx(0.035, abs=0.005))
    (pair,) = found["factors"]
    assert (pair["first"], pair["second"]) == ("a", "b")
    role = pair["classes"]["role"]
    assert role["factor"]["low"] < 4 < role["factor"]["high"]
    assert role["difference"]["mean"] == pytest.approx(0.15, abs=0.005)
    assert role["defined"] == 1


def test_equal_drafters_have_factor_one_in_every_resample():
    compared = result(measured((1.0, 0.6, 0.8), (1.0, 0.6, 0.8), noise=20), 0, {})["factors"][0]["classes"]["foreign"]
    assert compared["factor"] == {"mean": 1, "low": 1, "high": 1}
    assert compared["difference"] == {"mean": 0, "low": 0, "high": 0}


def test_a_drafter_that_does_not_drop_leaves_no_factor():
    compared = result(measured((1.0, 0.6, 0.8), (1.0, 1.1, 1.0)), 0, {})["factors"][0]["classes"]["role"]
    assert compared["factor"] == {"mean": None, "low": None, "high": None}
    assert compared["defined"] == 0
    assert compared["difference"]["low"] > 0.2


def test_chats_differ_in_the_system_prompt_alone(tmp_path):
    file = tmp_path / "systems.jsonl.gz"
    lines = ['{"system": "Be a pirate.", "name": "x"}', '{"system": "Be a judge."}', '{"system": "Hm.", "class": "odd"}']
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    systems = Systems.read(file)
    assert systems.classes["role"] == ("Be a pirate.", "Be a judge.")
    assert set(systems.classes) == {REFERENCE, "none", "paraphrase", "role", "irrelevant", "language", "odd"}
    for kind, texts in systems.classes.items():
        chats = systems.chats(kind, PROMPTS, 0)
        assert [chat[-1]["content"] for chat in chats] == [prompt.turns[0] for prompt in PROMPTS]
        used = {chat[0]["content"] if len(chat) == 2 else None for chat in chats}
        assert used == set(texts)
        assert systems.chats(kind, PROMPTS[5:6], 0) == chats[5:6]


def test_a_class_of_the_file_replaces_ours(tmp_path):
    file = tmp_path / "systems.jsonl"
    file.write_text('{"system": "You were trained under this.", "class": "training"}\n')
    systems = Systems.read(file)
    assert systems.classes[REFERENCE] == ("You were trained under this.",)
    assert "role" not in systems.classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{\n", ":1: not valid JSON"),
        ('{"system": "x"}\n{"name": "x"}\n', ":2: field 'system'"),
        ('{"system": ""}\n', "field 'system'"),
        ("[1]\n", "field 'line'"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    file = tmp_path / "systems.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        Systems.read(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"system prompt file .*none\.jsonl does not exist"):
        Systems.read(tmp_path / "none.jsonl")
