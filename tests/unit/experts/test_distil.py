import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vllm_edsd.errors import UserError
from vllm_edsd.experts.carve import carve
from vllm_edsd.experts.distil import distil
from vllm_edsd.experts.recipe import CarveRecipe
from vllm_edsd.experts.student import student

ROWS = torch.randint(2, 96, (12, 32), generator=torch.Generator().manual_seed(2))
RECIPE = {
    "target": "t",
    "data": ("d",),
    "experts": 4,
    "shared": 16,
    "top_k": 2,
    "rank": 4,
    "rows_per_step": 4,
    "steps": 12,
    "checkpoint_every": 5,
    "predicted": 0.5,
    "learning_rate": 1e-2,
    "warmup": 0.0,
}


@pytest.fixture(scope="module")
def carving(dense):
    return carve(dense, ROWS, 4, 16, seed=0)


@pytest.fixture
def run(dense, carving, tmp_path):
    """Distils into a student; returns it and the steps' KL. It may be killed after a step."""

    def run(name, kill_after=None, identity=None, **changes):
        recipe = CarveRecipe(**RECIPE | changes)
        moe = student(copy.deepcopy(dense), carving, recipe.shared, recipe.top_k, recipe.rank, recipe.seed)
        told = []

        def shown(progress):
            told.append(progress)
            if progress.step == kill_after:
                raise KeyboardInterrupt

        distil(dense, moe, ROWS, recipe, tmp_path / name, identity or {"seed": 0, "rank": 4}, shown)
        return moe, told

    return run


def test_it_learns(run):
    _, told = run("long", steps=40, predicted=1.0, rank=16, learning_rate=2e-2)
    before, after = (sum(progress.divergence for progress in part) for part in (told[:5], told[-5:]))
    assert [progress.step for progress in told] == list(range(1, 41))
    assert after < 0.7 * before


def test_only_what_is_to_be_trained_changes(run, dense, carving):
    moe, _ = run("some")
    start = student(copy.deepcopy(dense), carving, 16, 2, 4, 0)
    trained = {name for name, parameter in start.named_parameters() if parameter.requires_grad}
    changed = {name for name, tensor in moe.state_dict().items() if not torch.equal(tensor, start.state_dict()[name])}
    assert changed == trained


def test_a_killed_run_ends_with_the_same_weights(run, tmp_path):
    whole, told = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", kill_after=8)
    killed, rest = run("killed")
    assert [progress.step for progress in rest] == list(range(6, 13))
    assert [progress.divergence for progress in rest] == [progress.divergence for progress in told[5:]]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, killed.state_dict()[name]), name
    exact = [load_file(tmp_path / name) for name in ("whole", "killed")]
    assert all(torch.equal(exact[0][name], exact[1][name]) for name in exact[0])


def test_a_finished_run_is_not_gone_on_with(run):
    whole, _ = run("done")
    again, told = run("done")
    assert told == []
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize(
    ("identity", "told"),
    [({"seed": 1, "rank": 4}, "seed = 0, now 1"), ({"seed": 0, "rank": 4, "row": 8}, "row = None, now 8")],
    ids=str,
)
def test_a_checkpoint_of_another_recipe_is_refused_by_the_key(identity, told, run):
    run("out")
    with pytest.raises(UserError, match=f"was made with {told}; give another --out, or delete"):
        run("out", identity=identity)


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def another_file(path):
    save_file(load_file(path), path)


@pytest.mark.parametrize("spoil", [cut, another_file])
def test_a_damaged_checkpoint_is_refused(spoil, run, tmp_path):
    run("out")
    spoil(tmp_path / "out")
    with pytest.raises(UserError, match=r"is damaged .*delete it to start over"):
        run("out")


def test_the_checkpoint_says_where_it_stands(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run("out", kill_after=7)
    with safe_open(tmp_path / "out", "pt") as file:
        assert json.loads(file.metadata()["edsd"]) == {"step": 5, "identity": {"seed": 0, "rank": 4}}
