import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vllm_edsd.cli.main import app
from vllm_edsd.cli.train import read_recipe
from vllm_edsd.config import validate
from vllm_edsd.drafters import factory
from vllm_edsd.drafters.checkpoint import version
from vllm_edsd.errors import UserError
from vllm_edsd.training.features import size_in_bytes
from vllm_edsd.training.optimizers import OPTIMIZERS
from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.samples import read_samples, write_shard
from vllm_edsd.training.trainer import Trainer


def quiet(*_):
    pass


def train(recipe, out):
    trainer = Trainer(Recipe(**recipe), out, quiet, quiet)
    return trainer, trainer.run(quiet)


@pytest.mark.parametrize("drafter", ["edsd", "eagle3.1"])
def test_learns_and_exports_what_it_evaluated(drafter, tiny_recipe, tmp_path):
    recipe = Recipe(**tiny_recipe | {"drafter": drafter, "epochs": 40, "batch_tokens": 256})
    trainer = Trainer(recipe, tmp_path / "out", quiet, quiet)
    before = trainer.evaluate()
    after = trainer.run(quiet)
    assert after.loss < before.loss - 0.2
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["held_out"]["acceptance_length"] == after.acceptance_length
    assert provenance["data"]["fingerprint"].startswith("sha256:") and provenance["seed"] == 0
    # The exported weights read unscaled hidden states: loaded back, without the trainer's scale, they say the same.
    exported = factory.load(tmp_path / "out")
    trainer.scale = torch.ones_like(trainer.scale)
    trainer.drafter = exported
    assert trainer.evaluate().loss == pytest.approx(after.loss, abs=0.03)


@pytest.mark.parametrize("drafter", ["edsd", "eagle3.1"])
def test_goes_on_from_another_drafter(drafter, tiny_recipe, tmp_path):
    recipe = tiny_recipe | {"drafter": drafter, "epochs": 8}
    first, before = train(recipe, tmp_path / "first")
    recipe |= {"start": str(tmp_path / "first"), "seed": 0, "learning_rate": 1e-9}
    again, after = train(recipe, tmp_path / "again")
    # Nothing learnt: it says what the first said, but for the bfloat16 that its weights are stored in.
    assert after.loss == pytest.approx(before.loss, abs=0.03)
    assert torch.equal(again.drafter.draft_ids, first.drafter.draft_ids)
    made = json.loads((tmp_path / "again" / "provenance.json").read_text())
    assert made["start"]["version"] == version(tmp_path / "first")
    assert made["trained_tokens"] == 2 * made["start"]["provenance"]["trained_tokens"] > 0


def test_goes_on_from_nothing_else_than_the_recipe_describes(tiny_recipe, tmp_path):
    train(tiny_recipe, tmp_path / "first")
    start = {"start": str(tmp_path / "first")}
    with pytest.raises(UserError, match=r"first has draft_vocab_size 64, and this recipe makes a drafter with 32"):
        Trainer(Recipe(**tiny_recipe | start | {"draft_vocab_size": 32}), tmp_path / "out", quiet, quiet)
    config = tmp_path / "first" / "config.json"
    config.write_text(json.dumps({key: value for key, value in json.loads(config.read_text()).items() if key != "edsd"}))
    with pytest.raises(UserError, match=r"was not exported by `vllm-edsd train`"):
        Trainer(Recipe(**tiny_recipe | start), tmp_path / "out", quiet, quiet)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_killed_run_ends_with_the_same_weights(optimizer, tiny_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe | {"epochs": 12, "optimizer": optimizer}))

    def command(out):
        return [sys.executable, "-m", "vllm_edsd.cli.main", "train", str(recipe), "--out", str(tmp_path / out)]

    subprocess.run(command("whole"), check=True, capture_output=True)
    checkpoint = tmp_path / "killed.checkpoint.safetensors"
    process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists(), "the run was over before it could be killed"
    resumed = subprocess.run(command("killed"), check=True, capture_output=True, text=True)
    assert "resuming after step" in resumed.stderr
    whole, killed = (load_file(tmp_path / out / "model.safetensors") for out in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    exact = [load_file(tmp_path / f"{out}.checkpoint.safetensors") for out in ("whole", "killed")]
    assert all(torch.equal(exact[0][name], exact[1][name]) for name in exact[0])


def test_resume_refuses_another_recipe(tiny_recipe, tmp_path):
    train(tiny_recipe, tmp_path / "out")
    with pytest.raises(UserError, match=r"learning_rate = 0.001, now 0.002"):
        train(tiny_recipe | {"learning_rate": 0.002}, tmp_path / "out")


def test_resume_names_the_nested_key_that_changed(tiny_recipe, tmp_path):
    train(tiny_recipe, tmp_path / "out")
    with pytest.raises(UserError, match=r"curriculum\.mask = 'entropy', now 'reversed'"):
        train(tiny_recipe | {"curriculum": {"mask": "reversed"}}, tmp_path / "out")


def test_resumes_a_checkpoint_from_before_there_were_choices(tiny_recipe, tmp_path):
    whole, _ = train(tiny_recipe, tmp_path / "out")
    path = tmp_path / "out.checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["edsd"])
    for key in ("loss", "going_on", "betas", "optimizer"):
        del header["identity"][key]
    header["identity"]["curriculum"] = {"periods": 10, "entropy_rate": 0.025, "grow_depth": True}
    save_file(load_file(path), path, metadata={"edsd": json.dumps(header)})
    again = Trainer(Recipe(**tiny_recipe), tmp_path / "out", quiet, quiet)
    assert again.step == whole.step


@pytest.mark.parametrize("curriculum", [{"selection": "global"}, {"mask": "random"}], ids=str)
def test_a_resumed_run_masks_as_the_whole_one(curriculum, tiny_recipe, tmp_path):
    recipe = Recipe(**tiny_recipe | {"curriculum": curriculum | {"entropy_rate": 0.3}})

    def stop(progress):
        if progress.step == 7:
            raise KeyboardInterrupt

    whole = Trainer(recipe, tmp_path / "whole", quiet, quiet)
    whole.run(quiet)
    with pytest.raises(KeyboardInterrupt):
        Trainer(recipe, tmp_path / "killed", quiet, quiet).run(stop)
    resumed = Trainer(recipe, tmp_path / "killed", quiet, quiet)
    assert resumed.step == 5
    resumed.run(quiet)
    for name, weight in whole.drafter.state_dict().items():
        assert torch.equal(weight, resumed.drafter.state_dict()[name]), name


def test_unknown_names_in_a_recipe_list_the_known(tiny_recipe):
    with pytest.raises(UserError, match=r"'drafter' .* cannot be 'eagle9': .*known: edsd, edsd-normed, eagle3, eagle3\.1"):
        validate(Recipe, tiny_recipe | {"drafter": "eagle9"}, "recipe.yaml")
    with pytest.raises(UserError, match=r"'loss' .* cannot be 'l2': .*known: kl, reverse_kl, tv, hybrid, ce, ce_text"):
        validate(Recipe, tiny_recipe | {"loss": "l2"}, "recipe.yaml")
    with pytest.raises(UserError, match=r"'curriculum\.mask' .* cannot be 'hard': .*known: entropy, reversed, random, none"):
        validate(Recipe, tiny_recipe | {"curriculum": {"mask": "hard"}}, "recipe.yaml")


def test_resume_refuses_a_damaged_checkpoint(tiny_recipe, tmp_path):
    train(tiny_recipe, tmp_path / "out")
    checkpoint = tmp_path / "out.checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        train(tiny_recipe, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [2, 4], "feature_layers": [2, 4]}, "layer 4 is out of range"),
        ({"layers": [0, 3]}, "not in feature_layers"),
        ({"draft_vocab_size": 129}, "exceeds the target's vocabulary of 128"),
        ({"held_out": 24}, "held_out 24 needs more"),
    ],
)
def test_impossible_recipes_are_refused(change, message, tiny_recipe, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tiny_recipe | change, tmp_path / "out")
    assert not (tmp_path / "features").exists()


def test_a_damaged_target_is_named(tiny_recipe, tiny_target, tmp_path):
    target = shutil.copytree(tiny_target, tmp_path / "target")
    weights = target / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"target file .*model\.safetensors is damaged .*; make or fetch the target again"):
        train(tiny_recipe | {"target": str(target)}, tmp_path / "out")


def test_hidden_states_that_the_disk_has_no_room_for_are_refused(tiny_recipe, tmp_path, monkeypatch):
    Trainer(Recipe(**tiny_recipe), tmp_path / "out", quiet, quiet)
    whole = size_in_bytes(sum(len(sample.tokens) for sample in read_samples(Path(tiny_recipe["data"]))), 64, 3)
    free = shutil.disk_usage(tmp_path)._replace(free=whole - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free if place.exists() else None)
    # One of two shards has room.
    (tmp_path / "features" / "features-00001.safetensors").unlink()
    Trainer(Recipe(**tiny_recipe), tmp_path / "out", quiet, quiet)
    elsewhere = tiny_recipe | {"features": str(tmp_path / "new" / "features")}
    with pytest.raises(UserError, match=r"need 0\.0 GiB in .*/new/features, and 0\.0 GiB are free there; free some"):
        Trainer(Recipe(**elsewhere), tmp_path / "out", quiet, quiet)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"betas": [2, 3]}, r"'betas\.0' cannot be 2; give less than 1"),
        ({"learning_rate": float("inf")}, r"'learning_rate' cannot be inf; give a finite number, more than 0"),
        ({"epochs": float("inf")}, r"'epochs' .* cannot be inf; give a finite number, more than 0"),
        (
            {"curriculum": {"entropy_rate": float("nan")}},
            r"'curriculum\.entropy_rate' .* cannot be nan; give a finite number",
        ),
    ],
    ids=str,
)
def test_numbers_out_of_bounds_are_refused(change, message, tiny_recipe):
    with pytest.raises(UserError, match=message):
        validate(Recipe, tiny_recipe | change, "recipe.yaml")


def test_a_recipe_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(b"\x80\x00")
    with pytest.raises(UserError, match=r"recipe\.yaml is not text .*; give a YAML file in UTF-8"):
        read_recipe(recipe, Recipe)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", forbidden)
    with pytest.raises(UserError, match=r"recipe\.yaml cannot be read \(Permission denied\)"):
        read_recipe(recipe, Recipe)


def test_what_is_the_users_is_not_replaced(tiny_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    done = CliRunner().invoke(app, ["train", str(recipe), "--out", str(tmp_path)])
    assert isinstance(done.exception, UserError)
    assert "holds files that are not ours (there is no provenance.json)" in str(done.exception)
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_samples(tiny_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe))
    trainer = Trainer(Recipe(**tiny_recipe), tmp_path / "whole", quiet, quiet)
    bad = next(item for item in trainer.batches[6] if item.shard == 1)  # shard 0 gives the feature scale
    path = tmp_path / "features" / f"features-{bad.shard:05d}.safetensors"
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    tensors["hidden"][bad.begin] = float("nan")
    save_file(tensors, path, metadata=header)
    first = next(step for step, batch in enumerate(trainer.batches) if any(item is bad for item in batch))
    done = CliRunner().invoke(app, ["train", str(recipe), "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, UserError)
    message = str(done.exception)
    assert message.startswith(f"step {first + 1} has loss nan")
    same = sorted(item.place for item in trainer.batches[first] if item.shard == bad.shard)
    assert f"samples-{bad.shard:05d}.safetensors: {', '.join(map(str, same))}" in message
    left = [path.name for path in tmp_path.iterdir() if "out" in path.name]
    assert left == (["out.checkpoint.safetensors"] if first >= 5 else [])


def test_a_gradient_that_is_no_number_stops_the_run(tiny_recipe, tmp_path):
    trainer = Trainer(Recipe(**tiny_recipe), tmp_path / "out", quiet, quiet)
    before = trainer.drafter.fc.weight.detach().clone()
    trainer.drafter.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(UserError, match=r"step 1 has loss .* and gradient norm (nan|inf)"):
        trainer.run(quiet)
    assert torch.equal(trainer.drafter.fc.weight, before)


def test_data_of_another_target_is_refused_before_anything_is_written(tiny_recipe, tiny_data, tmp_path):
    write_shard(
        tmp_path / "data" / "samples-00000.safetensors", read_samples(tiny_data), {"fingerprint": {"target": "0" * 12}}
    )
    with pytest.raises(UserError, match="was made with target 000000000000"):
        train(tiny_recipe | {"data": str(tmp_path / "data")}, tmp_path / "out")
    assert not (tmp_path / "features").exists()


def test_a_full_disk_leaves_nothing_behind(tiny_recipe, tmp_path, monkeypatch):
    from vllm_edsd.training import state

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(UserError, match=r"out\.checkpoint\.safetensors: I/O error: No space left on device"):
        train(tiny_recipe, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
