"""The result as JSON, as a table, and as a picture."""

import json

import pytest
from rich.console import Console

from vllm_edsd.bench.load import Reply
from vllm_edsd.bench.measure import Measurement, Sample
from vllm_edsd.bench.plot import plot
from vllm_edsd.bench.report import check_place, positions, table, write
from vllm_edsd.bench.run import Outcome
from vllm_edsd.engine.counters import SpecCounters
from vllm_edsd.errors import UserError
from vllm_edsd.prompts import Prompt

ENVIRONMENT = {
    "target": "somewhere/target",
    "dtype": "float32",
    "temperature": 0.0,
    "num_tokens": 3,
    "prompt_count": 1,
    "machine": {"processor": "a processor"},
}


@pytest.fixture
def result():
    def one(arm, level, seconds, counters):
        reply = Reply(Prompt(id="a", turns=["?"]), "yes", 8, 0, seconds, ((0.1, 1), (seconds, 8)))
        return Measurement(arm, level, [Sample(0, (reply,), counters)])

    drafted = SpecCounters(4, 12, 6, (3, 2, 1))
    arms = [
        one(arm, level, time, count)
        for level in (1, 4)
        for arm, time, count in (("none", 2, SpecCounters()), ("edsd", 1, drafted))
    ]
    return Outcome(ENVIRONMENT, arms).json()


def test_json_has_what_is_promised(result, tmp_path):
    write(result, tmp_path / "new" / "bench.json")
    read = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert read == result
    assert [(row["arm"], row["concurrency"]) for row in read["arms"]] == [("none", 1), ("edsd", 1), ("none", 4), ("edsd", 4)]
    row = read["arms"][1]
    assert row["speedup"] == 2.0
    assert row["acceptance_length"] == 2.5
    assert row["per_position"] == [0.75, 0.5, 0.25]
    assert row["identical_share"] == 1.0
    assert {"p50", "p99"} <= row["itl_ms"].keys()
    assert "p50" in row["ttft_ms"]


def test_table_and_positions_show_every_arm(result):
    console = Console(width=80, record=True)
    console.print(table(result))
    shown = console.export_text()
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith(("none", " none", "edsd", " edsd"))] == [
        ["none", "1"],
        ["edsd", "1"],
        ["none", "4"],
        ["edsd", "4"],
    ]
    assert "2.50" in shown and "100.0%" in shown
    assert positions(result)[0] == "edsd, concurrency 1: accepted by position 0.75 0.50 0.25"


def test_picture_is_a_png_and_nothing_else_is_left(result, tmp_path):
    plot(result, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["bench.png"]


def test_picture_without_comparison(result, tmp_path):
    result["arms"] = [row | {"speedup": None} for row in result["arms"] if row["arm"] == "edsd"]
    plot(result, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").exists()


def test_an_unwritable_place_is_named_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    check_place(tmp_path / "new" / "bench.json")
    check_place(tmp_path / "file")
    for wrong in (tmp_path, tmp_path / "file" / "bench.json"):
        with pytest.raises(UserError, match=str(wrong)):
            check_place(wrong)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
