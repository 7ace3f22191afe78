"""The recipes beside the drafters."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from vllm_edsd.cli.train import read_recipe
from vllm_edsd.drafters import factory
from vllm_edsd.drafters.config import DrafterConfig
from vllm_edsd.training.recipe import Recipe

ROOT = Path(factory.__file__).parent
RECIPES = sorted(ROOT.glob("*/*.yaml"))


def parameters(recipe, target):
    config = DrafterConfig.of_target(
        AutoConfig.from_pretrained(target), recipe.target_name, recipe.drafter, recipe.layers, recipe.draft_vocab_size
    )
    if recipe.intermediate_size:
        config = config.model_copy(update={"intermediate_size": recipe.intermediate_size})
    with torch.device("meta"):
        drafter = factory.build(config, torch.arange(config.draft_vocab_size))
    return sum(parameter.numel() for parameter in drafter.parameters())


def test_the_matched_baselines_are_as_large_as_ours(target):
    ours = parameters(read_recipe(ROOT / "edsd" / "smollm2.yaml", Recipe), target)
    for name in ("smollm2.yaml", "smollm2-3.1.yaml"):
        assert parameters(read_recipe(ROOT / "eagle3" / name, Recipe), target) == pytest.approx(ours, rel=0.01)
    slim = read_recipe(ROOT / "eagle3" / "smollm2.yaml", Recipe).model_copy(update={"intermediate_size": None})
    assert parameters(slim, target) < 0.9 * ours


def test_all_arms_share_data_steps_and_curriculum():
    first, *others = (read_recipe(path, Recipe).model_dump() for path in RECIPES)
    assert len(others) == 2
    own = {"drafter", "layers", "intermediate_size"}
    for other in others:
        assert {key for key in first if first[key] != other[key]} <= own
