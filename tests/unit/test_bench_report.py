"""The result as JSON, as a table, and as a picture."""

import json

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from vllm_edsd.bench.arms import Arm
from vllm_edsd.bench.load import Reply
from vllm_edsd.bench.measure import Measurement, Sample
from vllm_edsd.bench.plot import plot
from vllm_edsd.bench.report import check_place, label, positions, table, write
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
        return Measurement(arm, level, [Sample((reply,), counters)])

    drafted = SpecCounters(4, 12, 6, (3, 2, 1))
    arms = [
        one(arm, level, time, count)
        for level in (1, 4)
        for arm, time, count in (
            (Arm("none"), 2, SpecCounters()),
            (Arm("edsd", policy="fixed:3"), 1, drafted),
            (Arm("edsd", policy="evict:8"), 1, drafted),
        )
    ]
    return Outcome(ENVIRONMENT, arms).json()


def test_json_has_what_is_promised(result, tmp_path):
    write(result, tmp_path / "new" / "bench.json")
    read = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert read == result
    assert [(row["arm"], row["policy"], row["concurrency"]) for row in read["arms"]] == [
        (arm, policy, level)
        for level in (1, 4)
        for arm, policy in (("none", None), ("edsd", "fixed:3"), ("edsd", "evict:8"))
    ]
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
    lines = [line.split() for line in shown.splitlines() if line.startswith(("none", " none", "edsd", " edsd"))]
    assert [line[: 2 + (line[0] == "edsd")] for line in lines] == [
        ["none", "1"],
        ["edsd", "fixed:3", "1"],
        ["edsd", "evict:8", "1"],
        ["none", "4"],
        ["edsd", "fixed:3", "4"],
        ["edsd", "evict:8", "4"],
    ]
    assert "2.50" in shown and "100.0%" in shown
    assert positions(result) == [
        f"edsd {policy}, concurrency {level}: accepted by position 0.75 0.50 0.25"
        for level in (1, 4)
        for policy in ("fixed:3", "evict:8")
    ]


def test_a_long_policy_is_not_cut_off(result):
    result["arms"][1] |= {"arm": "eagle3", "policy": "gammatune:12"}
    console = Console(width=80, record=True)
    console.print(table(result))
    assert {"eagle3", "gammatune:12"} <= set(console.export_text().split())


def test_results_from_before_there_were_policies_can_be_shown():
    assert label({"arm": "edsd"}) == label({"arm": "edsd", "policy": None}) == "edsd"


def test_picture_is_a_png_and_nothing_else_is_left(result, tmp_path):
    plot(result, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["bench.png"]


def test_picture_has_a_bar_and_a_line_for_every_policy(result, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, place, **_: (drawn.append(figure), place.write_bytes(b"")))
    plot(result, tmp_path / "bench.png")
    (speed, _, position), (legend,) = drawn[0].axes, drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["none", "edsd fixed:3", "edsd evict:8"]
    assert [len(bars) for bars in speed.containers] == [2, 2, 2]
    assert [len(line.get_xdata()) for line in position.lines] == [0, 3, 3]


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
