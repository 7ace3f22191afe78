"""Who moves what, and how far."""

import pytest
import torch

from vllm_edsd.training.optimizers import OPTIMIZERS, optimizers
from vllm_edsd.training.recipe import Recipe
from vllm_edsd.training.trainer import Trainer

RATE = 1e-2


@pytest.fixture
def drafter(tiny_recipe, tmp_path):
    trainer = Trainer(Recipe(**tiny_recipe), tmp_path / "out", print, lambda *_: None)
    return trainer.drafter


def spread(matrix):
    """The largest singular value over the median one."""
    values = torch.linalg.svdvals(matrix)
    return float(values[0] / values.median())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_parameter_is_moved_by_one(name, drafter):
    found = [id(each) for one in optimizers(drafter, name, RATE, (0.9, 0.95), 0) for each in one.param_groups[0]["params"]]
    assert sorted(found) == sorted(map(id, drafter.parameters()))


def test_muon_steps_alike_in_all_directions_of_a_matrix_and_leaves_the_head_to_adamw(drafter):
    torch.manual_seed(0)
    before = {name: value.detach().clone() for name, value in drafter.named_parameters()}
    for parameter in drafter.parameters():
        # One direction far stronger than the others, as gradients have it.
        parameter.grad = torch.randn_like(parameter)
        if parameter.ndim == 2:
            parameter.grad += 20 * torch.ones_like(parameter)
    strong = spread(drafter.fc.weight.grad)
    for one in optimizers(drafter, "muon", RATE, (0.9, 0.95), 0):
        one.step()
    moved = {name: value.detach() - before[name] for name, value in drafter.named_parameters()}
    assert spread(moved["fc.weight"]) < 2 < 20 < strong
    assert spread(moved["midlayer.self_attn.q_proj.weight"]) < 2
    # AdamW's first step is the sign of the gradient, whose strongest direction stays strong.
    assert spread(moved["lm_head.weight"]) > 5
    sizes = {name: float(step.square().mean().sqrt()) for name, step in moved.items()}
    assert sizes["lm_head.weight"] == pytest.approx(RATE, rel=0.05)
    assert sizes["fc.weight"] == pytest.approx(0.2 * RATE, rel=0.3)  # arXiv 2502.16982: AdamW's usual size
