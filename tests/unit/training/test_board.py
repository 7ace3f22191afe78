import sys

import pytest
import yaml
from typer.testing import CliRunner

from vllm_edsd.cli.main import app
from vllm_edsd.errors import UserError
from vllm_edsd.training.board import Board
from vllm_edsd.training.evaluation import Evaluation
from vllm_edsd.training.trainer import Progress


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_a_run_leaves_its_figures(tiny_recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe | {"epochs": 1}))
    options = ["--out", str(tmp_path / "out"), "--tensorboard", str(tmp_path / "board")]
    done = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml"), *options])
    assert done.exit_code == 0, done.exception
    found = scalars(tmp_path / "board")
    steps = sorted(found["loss"])
    assert steps == list(range(1, steps[-1] + 1))
    assert found["learning_rate"][1] == pytest.approx(1e-3)
    assert min(found["tokens_per_second"].values()) > 0
    assert found["trained_acceptance/depth_1"].keys() == found["loss"].keys() > found["trained_acceptance/depth_3"].keys()
    assert list(found["held_out/acceptance_length"]) == [steps[-1]]
    assert "held_out_acceptance/position_3" in found and "held_out/loss" in found


def test_a_resumed_run_replaces_the_steps_it_takes_again(tmp_path):
    def run(begin, end, loss):
        board = Board(tmp_path)
        board.begin(begin)
        for step in range(begin + 1, end + 1):
            board.show(Progress(step, 9, loss, [0.5], 10, 1e-3, 0.1, Evaluation(1.5, [0.5], 2.0, 4) if step == 4 else None))
        board.end()

    run(0, 6, 1.0)
    run(4, 5, 2.0)
    found = scalars(tmp_path)
    assert found["loss"] == {1: 1, 2: 1, 3: 1, 4: 1, 5: 2}
    assert found["tokens_per_second"][1] == pytest.approx(100)
    assert found["held_out/acceptance_length"] == {4: 1.5}


def test_says_what_is_missing_or_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is no writable directory"):
        Board(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        Board(tmp_path / "board")
