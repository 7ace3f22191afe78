"""Two ranks through a real Ray cluster, in float32: one rank's text, the same drafts on both, and a clean end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SCRIPT = Path(__file__).with_name("ranks.py")


@pytest.fixture(scope="module")
def found(tiny_target, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    recipe = {
        "drafter": "edsd",
        "target": str(tiny_target),
        "target_name": "tiny-target",
        "data": str(tiny_data),
        "features": str(folder / "features"),
        "feature_layers": [1, 2, 3],
        "layers": [2, 3],
        "draft_vocab_size": 128,
        "max_depth": 3,
        "epochs": 20,  # it learns the samples by heart: their drafts are accepted, and there is something to adapt to
        "batch_tokens": 64,
        "precision": "float32",
        "held_out": 4,
        "evaluate_every": 1000,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train = ["-m", "vllm_edsd.cli.main", "train", folder / "recipe.yaml", "--out", folder / "drafter"]
    serve = [SCRIPT, tiny_target, folder / "drafter", tiny_data, folder / "out.json"]
    for command in (train, serve):
        done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


def test_every_worker_is_ready_for_our_drafters(found):
    ranks = found["two"]["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    assert len({rank["pid"] for rank in ranks}) == 2
    assert {(rank["model"], rank["active"]) for rank in ranks} == {("Eagle3EdsdModel", "1")}
    assert ranks[0]["preload"] == ranks[1]["preload"] != ""


@pytest.mark.parametrize("policy", ["evict", "chaos"])
def test_two_ranks_write_what_one_writes(policy, found):
    assert len(found["one"]) > 8
    assert found["two"][policy]["answers"] == [answer["tokens"] for answer in found["one"]]


@pytest.mark.parametrize("policy", ["evict", "chaos"])
def test_ranks_agree_on_every_draft(policy, found):
    first, second = (rank["drafts"] for rank in found["two"][policy]["ranks"])
    assert first == second
    drafted = {drafted for _, drafted, _ in first}
    kept = {count for _, _, counts in first for count in counts}
    assert len(first) > 40 and len(drafted) > 2 and len(kept) > 2


def test_left_alone_the_ranks_would_not_agree(found):
    """The control: each times its own steps, and no two steps take both ranks equally long."""
    first, second = (rank["seconds"] for rank in found["two"]["evict"]["ranks"])
    told = [(one, other) for one, other in zip(first, second, strict=True) if one is not None]
    assert len(told) > 20 and all(one != other for one, other in told)


def test_a_killed_worker_ends_the_request_and_leaves_nothing(found):
    two = found["two"]
    assert (two["error"], two["left"]) == ("EngineDeadError", [])
    assert two["error_seconds"] < 15
    for kind, used in (("psm_", True), ("cpushm", two["ranks"][0]["sums_in_shared_memory"])):
        assert any(kind in name for name in two["shared"]) is used
    assert two["left_shared"] == []
    assert {"raylet", "gcs_server", "ray::RayCPUWorker.run"} <= set(two["family"])
