"""One step in parts, in this process or in several, is the step of the whole batch."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.trainer import Trainer

WHOLE = {"curriculum": {"entropy_rate": 0.3}, "batch_tokens": 200, "going_on": 0.6}


def quiet(*_):
    pass


def train(recipe, out, stop=None):
    """The trainer after its run, or after `stop` steps, and what it showed after each step."""
    shown = []

    def show(progress):
        shown.append(progress)
        if progress.step == stop:
            raise KeyboardInterrupt

    trainer = Trainer(Recipe(**recipe), out, quiet, quiet)
    if stop is None:
        trainer.run(show)
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(show)
    return trainer, shown


@pytest.mark.parametrize(
    "curriculum",
    [{}, {"mask": "random"}, {"selection": "global"}, {"mask": "none"}],
    ids=["entropy", "random", "global", "none"],
)
@pytest.mark.parametrize("accumulate", [2, 5])
def test_a_batch_in_parts_takes_the_same_steps(accumulate, curriculum, tiny_recipe, tmp_path):
    recipe = tiny_recipe | WHOLE | {"curriculum": WHOLE["curriculum"] | curriculum}
    whole, shown = train(recipe, tmp_path / "whole")
    assert min(map(len, whole.batches)) < accumulate or accumulate == 2  # some parts are empty
    parts, shown_in_parts = train(recipe | {"accumulate": accumulate}, tmp_path / "parts")
    for one, other in zip(shown, shown_in_parts, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.acceptance == pytest.approx(one.acceptance, abs=1e-6)
        assert other.tokens == one.tokens
    for name, weight in whole.drafter.named_parameters():
        torch.testing.assert_close(parts.drafter.get_parameter(name), weight, rtol=1e-4, atol=1e-5)


def test_two_processes_take_the_steps_of_one_and_resume_its_checkpoint(tiny_recipe, tmp_path):
    """Under torchrun, with gloo: from the start, and from where one process was stopped."""
    recipe = tiny_recipe | WHOLE
    whole, shown = train(recipe, tmp_path / "whole")
    half = len(whole.batches) // 2
    train(recipe | {"checkpoint_every": half}, tmp_path / "resumed", stop=half)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    expected = load_file(tmp_path / "whole.checkpoint.safetensors")
    for name in ("fresh", "resumed"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command += ["-m", "vllm_edsd.cli.main", "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("wrote") == 1  # one process alone writes and shows
        assert ("resuming after step" in done.stderr) == (name == "resumed")
        made = json.loads((tmp_path / name / "provenance.json").read_text())
        assert made["processes"] == 2
        assert made["held_out"]["loss"] == pytest.approx(shown[-1].evaluation.loss, rel=1e-5)
        found = load_file(tmp_path / f"{name}.checkpoint.safetensors")
        assert found.keys() == expected.keys()
        for tensor, value in expected.items():
            torch.testing.assert_close(found[tensor], value, rtol=1e-4, atol=1e-5)
