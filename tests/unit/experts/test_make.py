"""A carved checkpoint from the recipe to its files."""

import json

import pytest
import torch
import transformers

from vllm_edsd.errors import UserError
from vllm_edsd.experts import delta as deltas
from vllm_edsd.experts.make import make
from vllm_edsd.experts.recipe import CarveRecipe
from vllm_edsd.training.samples import Sample, write_shard


@pytest.fixture
def recipe(dense, tmp_path):
    """Keys of a recipe for the dense model, which has no tokenizer."""
    dense.save_pretrained(tmp_path / "dense")
    words = torch.Generator().manual_seed(1)
    samples = [Sample(torch.randint(2, 96, (30,), generator=words).int(), 10, 0.0) for _ in range(40)]
    write_shard(tmp_path / "data" / "samples-00000.safetensors", samples, {})
    return {
        "target": tmp_path / "dense",
        "data": (tmp_path / "data",),
        "experts": 4,
        "shared": 16,
        "top_k": 2,
        "rank": 4,
        "row": 16,
        "calibration_rows": 8,
        "steps": 3,
        "rows_per_step": 4,
        "held_out_rows": 5,
        "checkpoint_every": 2,
    }


def run(recipe, out):
    told, steps = [], []
    make(CarveRecipe(**recipe), out, told.append, steps.append)
    return told, steps


def test_a_checkpoint_with_its_delta_and_provenance(recipe, tmp_path):
    told, steps = run(recipe, tmp_path / "moe")
    assert [progress.step for progress in steps] == [1, 2, 3]
    moe = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "moe", dtype=torch.float32)
    assert type(moe) is transformers.Qwen2MoeForCausalLM
    assert (moe.config.num_experts, moe.config.num_experts_per_tok, moe.config.moe_intermediate_size) == (4, 2, 16)
    delta = deltas.read(tmp_path / "moe" / deltas.FOLDER / deltas.FILE)
    assert (delta.shared, delta.top_k) == (16, 2)
    provenance = json.loads((tmp_path / "moe" / "provenance.json").read_text())
    assert provenance["recipe"]["steps"] == 3 and provenance["data"][0].startswith("sha256:")
    scores = provenance["held_out"]["nll_per_token"]
    assert scores.keys() == {"dense", "k=2", "k=1"} and provenance["held_out"]["rows"] == 5
    assert any("held-out NLL per token" in line for line in told)


def test_running_again_makes_the_same_without_training(recipe, tmp_path):
    run(recipe, tmp_path / "moe")
    before = (tmp_path / "moe" / "model.safetensors").read_bytes()
    assert run(recipe, tmp_path / "moe")[1] == []
    assert (tmp_path / "moe" / "model.safetensors").read_bytes() == before


def test_another_recipe_is_refused_by_the_key(recipe, tmp_path):
    run(recipe, tmp_path / "moe")
    with pytest.raises(UserError, match="was made with rank = 4, now 8"):
        run(recipe | {"rank": 8}, tmp_path / "moe")


@pytest.mark.parametrize(("shared", "left"), [(18, 62), (80, 0), (96, -16)])
def test_neurons_that_do_not_divide_are_refused_before_the_work(shared, left, recipe, tmp_path):
    with pytest.raises(UserError, match=f"shared {shared} leaves {left} neurons, which do not divide into experts 4"):
        run(recipe | {"shared": shared}, tmp_path / "moe")


def test_a_target_of_another_kind_is_refused(recipe, make_moe, tmp_path):
    make_moe().save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="is of type qwen2_moe; only llama is carved"):
        run(recipe | {"target": tmp_path / "other"}, tmp_path / "moe")
    assert not (tmp_path / "moe").exists()
